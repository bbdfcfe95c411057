"""The command line, called in this process or started in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from rpiae.cli import main


def rpiae(*arguments: str, cwd: Path, code: int = 0, **environment: str) -> tuple[str, str]:
    """Output and errors of a command in this process, which spares it the import of torch."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment), patch.object(sys, "argv", ["rpiae", *arguments]),
        contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):  # fmt: skip
        returned = main()
    return _checked(returned, out.getvalue(), err.getvalue(), code)


def rpiae_alone(*arguments: str, cwd: Path, code: int = 0, **environment: str) -> tuple[str, str]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "rpiae", *arguments],
        capture_output=True, text=True, cwd=cwd, env=os.environ | environment,
    )  # fmt: skip
    return _checked(done.returncode, done.stdout, done.stderr, code)


def _checked(returned: int, out: str, err: str, code: int) -> tuple[str, str]:
    assert returned == code, err
    if code:
        assert "Traceback" not in err
        assert err.count("rpiae: ") == 1
    return out, err

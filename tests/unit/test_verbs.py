"""The verbs: each declares its own options, and only the one that is asked for is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rpiae.cli import main
from rpiae.cli.main import VERBS

#: Prints the modules of ours and torch that a command line has loaded.
LOADED = (
    "import sys; from rpiae.cli import main; main(sys.argv[1:]); "
    "print(*(m for m in sys.modules if m == 'torch' or m.startswith('rpiae.cli.')), file=sys.stderr)"
)


def loaded(*arguments: str) -> set[str]:
    """What a process has loaded when a command is done."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True
    )
    return {name.removeprefix("rpiae.cli.") for name in done.stderr.splitlines()[-1].split()}


def test_only_the_verb_that_is_asked_for_is_loaded() -> None:
    modules = {verb.module for verb in VERBS.values()}
    assert loaded("--help") & {*modules, "torch"} == set()
    assert loaded("list") & {*modules, "torch"} == {"listing"}
    assert loaded("build", "--help") & {*modules, "torch"} == {"build"}


def test_no_verb_needs_torch_to_declare_its_options() -> None:
    # A verb that is named as a value is declared as well: so all are, in one process.
    assert "torch" not in loaded("--import", *VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_a_verb_does_and_takes(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"usage: rpiae {verb} " in out
    assert VERBS[verb].summary in out
    assert "--debug" in out


def test_what_is_wrong_is_said_with_the_usage_of_the_verb(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--debug", "report", "a", "--ou", "b", "--bogus"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: rpiae report ")
    assert "unrecognized arguments: --bogus" in err
    assert main(["rebuild"]) == 2
    assert "invalid choice: 'rebuild'" in capsys.readouterr().err

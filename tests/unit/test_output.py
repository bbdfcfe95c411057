"""Output that fails, is closed, or takes ASCII alone; names that look like markup."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpiae.cli import main
from rpiae.cli.screen import stdout
from rpiae.core.runtime.output import steady_output

FULL = Path("/dev/full")


def shell(redirected: str, *arguments: str, **environment: str) -> tuple[int, bytes, bytes]:
    """Exit code and output of ``rpiae`` with redirections of a shell."""
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m rpiae "$@" {redirected}', sys.executable, *arguments],
        capture_output=True, env=os.environ | environment, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("redirected", [">&-", "0>&- >&- 2>&-", "2>/dev/full"])
def test_a_stream_that_nobody_reads_fails_nothing(redirected: str) -> None:
    assert shell(redirected, "list", "losses")[0] == 0


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("--version",)])
def test_lost_results_are_told_and_fail(arguments: tuple[str, ...]) -> None:
    code, _, err = shell(">/dev/full", *arguments)
    assert code == 1
    assert err == b"rpiae: cannot write to standard output: No space left on device\n"


def test_a_reader_that_goes_away_is_no_error_to_speak_of() -> None:
    code, out, err = shell("| head -c 1", "list", "--json")
    assert (code, out, err) == (0, b"{", b"")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "rpiae", "list"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_output_may_be_ascii_alone(environment: dict[str, str]) -> None:
    code, out, err = shell("", "build", "--dry-run", "--set", "out='fö'", **environment)
    assert (code, err) == (0, b"")
    assert out.isascii()
    assert b"encoder ->" in out
    assert b"out f\\x" in out
    code, out, err = shell("", "show", "é", **environment)
    assert code == 2
    assert b"nothing is named '\\" in err


def test_a_name_of_bytes_is_told_as_bytes(tmp_path: Path) -> None:
    config = os.fsencode(tmp_path) + b"/r\xff.toml"
    with open(config, "wb") as file:
        file.write(b"seed = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "rpiae", "config", "check", config],
        capture_output=True, check=False, env=os.environ | {"COLUMNS": "1000"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.replace(b"\n", b"").endswith(b"/r\\xff.toml is fine")


@pytest.mark.parametrize("name", ["[/red]", "[red]", "[/y", ":cat:", "\\[red]", "[link=x]y[/link]"])
def test_nothing_in_a_name_is_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stdout.print(name)
    assert capsys.readouterr().out == f"{name}\n"


@pytest.mark.parametrize("name", ["[", "[/y]", "[red]", ":cat:"])
def test_files_whose_names_look_like_markup(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    assert main(["config", "new", name]) == 0
    assert main(["config", "check", name]) == 0
    assert capsys.readouterr().out == f"wrote {name}\n{name} is fine\n"


class _Failing(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_after_its_first_error_a_stream_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = _Failing()
    monkeypatch.setattr(sys, "stdout", failing)
    with steady_output() as failures:
        print("lost")
        print("lost too")
        assert sys.stdout is not failing
    assert sys.stdout is failing
    assert failures.stdout is not None
    assert failures.stderr is None

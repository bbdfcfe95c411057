"""Plugins as ``rpiae plugins new`` writes them: complete, and passing their own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpiae.cli import main
from rpiae.cli.plugins import FAMILIES, part_name, rendered, write
from rpiae.core.errors import UsageError

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "plugins" / "template"


def test_the_one_in_the_repository_is_what_is_written_today() -> None:
    committed = {
        path.relative_to(COMMITTED).as_posix(): path.read_text(encoding="utf-8")
        for path in COMMITTED.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__py")) for part in path.parts)
    }
    assert committed == rendered("template", family="bridges")


def test_every_family_passes_its_own_tests(tmp_path: Path) -> None:
    site = tmp_path / "site"
    tests, sources = [COMMITTED / "tests"], [COMMITTED / "src"]
    describe(site, "template")
    for family in sorted(set(FAMILIES) - {"bridges"}):  # the committed one is a bridge
        name = f"my-{family}"
        folder = tmp_path / name
        write(rendered(name, family=family), folder)
        describe(site, name)
        sources.append(folder / "src")
        tests.append(folder / "tests")
    path = os.pathsep.join(map(str, (ROOT, site, *sources)))
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
            "--import-mode=importlib", *map(str, tests),
        ],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{3 * len(FAMILIES)} passed" in done.stdout


@pytest.mark.parametrize("given", ["foo", "Foo", "rpiae-foo", "rpiae_foo", " foo "])
def test_names_are_normalised(given: str) -> None:
    assert part_name(given) == "foo"


@pytest.mark.parametrize(
    "given", ["", "rpiae", "rpiae-", "2x", "a.b", "a--b", "-a", "a/b", "../a", "é", "a$b", "a-"]
)
def test_names_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match="no name for a plugin"):
        part_name(given)


def test_new_writes_a_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "two_words", "--family", "losses"]) == 0
    out = capsys.readouterr().out
    assert "cd rpiae-two-words && pip install -e" in out
    assert "src/rpiae_two_words/loss.py" in out
    manifest = (
        tmp_path / "rpiae-two-words" / "src" / "rpiae_two_words" / "__init__.py"
    ).read_text()
    assert 'name="two-words"' in manifest
    assert "rpiae_two_words.configs:TwoWordsLossConfig" in manifest
    before = sorted(tmp_path.rglob("*"))
    assert main(["plugins", "new", "two-words"]) == 2
    assert "rpiae-two-words exists already: name a new folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert main(["plugins", "new", "other", "--out", "empty"]) == 0


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["variational"], "the bridge 'variational' is already registered by rpiae"),
        (["none"], "the bridge 'none' is already registered by rpiae"),
        (["vb8"], "the bridge 'vb8' is already registered by rpiae"),
        (["vit", "--family", "decoders"], "the decoder 'vit' is already registered by rpiae"),
        (["dinov2", "--family", "encoders"], "the encoder 'dinov2-s' is already registered"),
        (["foo", "--family", "encodrs"], "Did you mean 'encoders'"),
        (
            ["foo", "--family", "recipes"],
            "Available: bridges, datasets, decoders, encoders, generators, losses",
        ),
        (["../foo"], "no name for a plugin"),
        (["foo", "--out", "file/in"], "cannot write file/in"),
        (["foo", "--out", "file"], "file exists already"),
    ],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    wanted: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["plugins", "new", *arguments]) in (1, 2)
    assert wanted in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_importable_package_is_not_shadowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rpiae_there.py").write_text("")
    assert main(["plugins", "new", "there"]) == 2
    assert "a package rpiae_there is importable already" in capsys.readouterr().err


def describe(site: Path, name: str) -> None:
    """Metadata as an installer would leave it."""
    package = f"rpiae_{name.replace('-', '_')}"
    info = site / f"{package}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: rpiae-{name}\nVersion: 0.1.0\n", encoding="utf-8"
    )
    points = f"[rpiae.plugins]\nrpiae-{name} = {package}:MANIFEST\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")

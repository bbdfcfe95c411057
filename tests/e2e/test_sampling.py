"""``rpiae sample`` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpiae.cli import main
from rpiae.core.model.folders import save_tokenizer
from tests.commands import rpiae, rpiae_alone
from tests.toy_generators import toy_tokenizer, write_run

QUICK = ("--steps", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a run of a generator, and a weaker one."""
    folder = tmp_path_factory.mktemp("sample")
    write_run(folder / "g")
    write_run(folder / "weak", seed=1)
    return folder


def arrays(path: Path) -> tuple[np.ndarray, list[int]]:
    with np.load(path) as file:
        return file["arr_0"], file["arr_1"].tolist()


def test_a_sheet(here: Path) -> None:
    out, err = rpiae(
        "sample", "g", "--classes", "cat,1-2", "--per-class", "4", "--guidance", "1.5",
        "--sampler", "heun", "--interval", "0.1,0.9", "--compare", "--preview", "newest.png",
        "--out", "sheet.png", *QUICK, cwd=here,
    )  # fmt: skip
    assert "sheet.png: 12 samples, classes: 3," in out
    assert "samples/s" in err
    assert "left" in err
    with Image.open(here / "sheet.png") as picture:
        assert picture.size == (2 * 38 + 12, 28)  # 4 samples of 8 pixels twice, in 3 rows
    assert (here / "newest.png").is_file()


def test_equal_labels_and_the_rest(here: Path) -> None:
    out, err = rpiae(
        "sample", "g", "--count", "20", "--out", "equal.npz", "--json", *QUICK, cwd=here
    )
    told = json.loads(out)
    assert told["samples"] == 20
    assert told["settings"]["steps"] == 2
    assert "it is 6 of each, and one more of the first 2" in err
    pictures, labels = arrays(here / "equal.npz")
    assert labels == [index % 3 for index in range(20)]
    # Fewer samples are the beginning of more, and a class by itself is what it is among others.
    rpiae("sample", "g", "--count", "6", "--out", "few.npz", *QUICK, cwd=here)
    assert np.abs(arrays(here / "few.npz")[0].astype(int) - pictures[:6]).max() <= 1
    _, err = rpiae("sample", "g", "--labels", "random", "--out", "drawn.npz", *QUICK, cwd=here)
    assert "note:" not in err
    drawn = arrays(here / "drawn.npz")[1]
    assert len(drawn) == 64
    assert set(drawn) == {0, 1, 2}
    rpiae("sample", "g", "--labels", "none", "--count", "3", "--out", "none", *QUICK, cwd=here)
    named = sorted(path.name for path in (here / "none").glob("*.png"))
    assert named == ["00000.png", "00001.png", "00002.png"]
    index = json.loads((here / "none" / "samples.json").read_text())
    assert index["labels"] == dict.fromkeys(named, -1)
    rpiae("sample", "g", "--out", "default.npz", *QUICK, cwd=here)
    assert np.bincount(arrays(here / "default.npz")[1]).tolist() == [21, 21, 21]
    rpiae("sample", "g", "--per-class", "2", "--out", "per.npz", *QUICK, cwd=here)
    assert arrays(here / "per.npz")[1] == [0, 0, 1, 1, 2, 2]


def test_a_guide_and_the_grid_of_the_reference(here: Path) -> None:
    for name, options in (
        ("own", ["--guidance", "2"]),
        ("guided", ["--guidance", "2", "--guide", "weak"]),
        ("reference", ["--guidance", "2", "--guide", "weak", "--end", "0.002", "--points"]),
    ):
        rpiae("sample", "g", "--count", "3", "--out", f"{name}.npz", *options, *QUICK, cwd=here)
    own, guided, reference = (
        arrays(here / f"{name}.npz")[0].astype(int) for name in ("own", "guided", "reference")
    )
    assert np.abs(own - guided).max() > 1
    assert np.abs(guided - reference).max() > 1


def test_two_processes_make_what_one_makes(here: Path) -> None:
    asked = ("sample", "g", "--count", "300", "--batch-size", "16", *QUICK)
    rpiae_alone(*asked, "--out", "one.npz", cwd=here, OMP_NUM_THREADS="1")
    _, err = rpiae_alone(
        *asked, "--processes", "2", "--out", "two.npz", cwd=here, OMP_NUM_THREADS="1"
    )
    assert err.count("samples: 300") == 1
    assert (here / "two.npz").read_bytes() == (here / "one.npz").read_bytes()
    assert not list(here.glob("*.unfinished"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_gone_on_with(here: Path, number: signal.Signals) -> None:
    asked = (
        "sample",
        "g",
        "--count",
        "512",
        "--batch-size",
        "64",
        "--steps",
        "20",
        "--device",
        "cpu",
    )
    whole, out = f"whole-{number.name}.npz", f"broken-{number.name}.npz"
    rpiae_alone(*asked, "--out", whole, cwd=here, OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        [sys.executable, "-m", "rpiae", *asked, "--out", out], cwd=here,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    work = here / f"{out}.unfinished"
    deadline = time.monotonic() + 120
    while len(list(work.glob("samples-*-of-*.safetensors"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "of 8 files of samples are complete and stay" in err
        assert (
            f"rpiae sample g --count 512 --batch-size 64 --steps 20 --device cpu --out {out}" in err
        )
    there = {path.name: path.stat().st_mtime_ns for path in work.glob("samples-*-of-*.safetensors")}
    assert 2 <= len(there) < 8
    assert not (here / out).exists()
    _, err = rpiae_alone(*asked, "--out", out, cwd=here, OMP_NUM_THREADS="1")
    assert f"samples: 512, {64 * len(there)} of them are there already" in err
    assert (here / out).read_bytes() == (here / whole).read_bytes()
    assert not work.exists()


def test_latents_are_decoded_by_the_tokenizer(here: Path) -> None:
    rpiae("sample", "g", "--count", "3", "--out", "l.safetensors", *QUICK, cwd=here)
    out, _ = rpiae(
        "decode", "l.safetensors", "--run", "g", "--out", "decoded", "--device", "cpu", cwd=here
    )
    assert "decoded: 3 pictures" in out
    rpiae("sample", "g", "--count", "3", "--out", "straight", *QUICK, cwd=here)
    decoded, straight = (sorted((here / name).glob("*.png")) for name in ("decoded", "straight"))
    for one, other in zip(decoded, straight, strict=True):
        with Image.open(one) as left, Image.open(other) as right:
            assert np.abs(np.asarray(left).astype(int) - np.asarray(right)).max() <= 1


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--guidance", "-1"], 2, "guidance must be 0 or more, got -1.0"),
        (["--guidance", "nan"], 2, "guidance must be 0 or more, got nan"),
        (["--steps", "0"], 2, "steps must be at least 1, got 0"),
        (["--interval", "0.9,0.1"], 2, "the lower one first, got 0.9 and 0.1"),
        (["--classes", "kat"], 2, "no class named 'kat'. Did you mean 'cat'?"),
        (["--classes", "0-9"], 2, "no class 9. There are 3, numbered from 0: cat, dog, ship"),
        (["--count", "3", "--per-class", "2"], 2, "leave one out"),
        (["--labels", "none", "--classes", "cat"], 2, "leave out --classes"),
        (["--labels", "none", "--guidance", "2"], 2, "these have none: ask for classes"),
        (["--count", "999999999999"], 2, "100000000 at most"),
        (["--tokenizer", "other"], 2, "is another one than that on whose latents"),
        (["--guide", "nowhere"], 1, "nowhere does not exist"),
        (["--guide", "weak/tokenizer"], 1, "holds a tokenizer, and a generator is wanted"),
        (["--compare"], 2, "guidance 1 is none"),
    ],
)
def test_bad_input(here: Path, options: list[str], code: int, told: str) -> None:
    if not (here / "other").exists():
        save_tokenizer(toy_tokenizer(1), here / "other")
    _, err = rpiae("sample", "g", *options, "--out", "bad.png", *QUICK[2:], cwd=here, code=code)
    assert told in err
    assert not list(here.glob("bad*"))


def test_words_that_are_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("0.5", "a,b", "0.1,0.2,0.3"):
        assert main(["sample", "g", "--interval", word, "--out", "x.png"]) == 2
        assert "expected two numbers, such as 0.1,0.9" in capsys.readouterr().err


def test_what_is_wrong_is_said_once_by_several_processes(here: Path) -> None:
    _, err = rpiae_alone(
        "sample", "g", "--classes", "kat", "--processes", "2", "--out", "x.png", cwd=here, code=2
    )
    assert err.count("no class named 'kat'") == 1

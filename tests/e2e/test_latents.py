"""``rpiae encode``, ``decode`` and ``stats`` as a user meets them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rpiae import runs
from rpiae.cli import main
from rpiae.core.model.build import build
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.training import events
from rpiae.latents import LatentDataset
from tests.short_run import short_run
from tests.toys import DECODERS, ENCODERS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run's tokenizer, seven photographs of two classes, one of them damaged."""
    monkeypatch.chdir(tmp_path)
    model = build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"])
    model.trained_size = 32
    save_tokenizer(model, tmp_path / "run" / "tokenizer")
    write_photographs(tmp_path / "photos", 7)
    (tmp_path / "photos" / "a" / "2.png").write_bytes(b"no image")
    return tmp_path


def write_photographs(folder: Path, count: int) -> None:
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def done(*arguments: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([*arguments, "--device", "cpu"]) == code
    found = capsys.readouterr()
    assert "Traceback" not in found.err
    return found.out, found.err


def test_from_photographs_to_latents_and_back(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = ("encode", "run", "folder:photos", "--out", "latents", "--shard-size", "3")
    out, err = done(*encode, "--flip", "--workers", "0", capsys=capsys)
    assert "latents of 6 images, shards: 3, 1 skipped" in out
    assert "skipped: photos/a/2.png: not an image" in err
    assert "with labels" in err
    assert "images/s" in err
    assert "left" in err
    dataset = LatentDataset("latents")
    assert dataset.label_names == ("a", "b")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]

    _, err = done(*encode, "--flip", "--workers", "1", "--batch-size", "2", capsys=capsys)
    assert "3 of them complete already" in err
    _, err = done(*encode, "--dtype", "bf16", capsys=capsys, code=2)
    assert "made otherwise" in err
    assert err.count("rpiae: ") == 1

    out, _ = done("decode", "latents", "--out", "pictures", capsys=capsys)
    assert "pictures: 6 pictures" in out
    names = sorted(p.relative_to("pictures").as_posix() for p in Path("pictures").rglob("*.png"))
    assert names == ["a/0.png", "a/4.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png"]
    done("decode", "latents", "--out", "two", "--limit", "2", capsys=capsys)
    assert len(list(Path("two").rglob("*.png"))) == 2

    save_tokenizer(
        build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"], seed=9), "o"
    )
    _, err = done("decode", "latents", "--run", "o", "--out", "other", capsys=capsys)
    assert "note: latents was made by another tokenizer" in err
    _, err = done("stats", "o", "latents", capsys=capsys, code=2)
    assert "was made by another tokenizer" in err
    save_tokenizer(build(encoder=ENCODERS["vit"], bridge="vb8", decoder=DECODERS["vit"]), "wide")
    _, err = done("decode", "latents", "--run", "wide", "--out", "x", capsys=capsys, code=2)
    assert "these latents have 4 channels, this tokenizer's have 8" in err

    Path("run").rename("moved")
    _, err = done("decode", "latents", "--out", "x", capsys=capsys, code=1)
    assert "name it with --run" in err
    done("decode", "latents", "--run", "moved", "--out", "again", capsys=capsys)
    path = Path("latents/latents-00001-of-00003.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    _, err = done("decode", "latents", "--run", "moved", "--out", "x", capsys=capsys, code=1)
    assert "latents-00001-of-00003.safetensors cannot be read" in err


def test_stats_are_stored_and_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = ("stats", "run", "folder:photos", "--workers", "0")
    out, err = done(*stats, "--dry-run", "--json", capsys=capsys)
    report = json.loads(out)
    assert not report["stored"]
    assert report["count"] == 6 * 64
    assert "skipped: photos/a/2.png" in err
    assert load_tokenizer("run").latent_mean is None

    latents = torch.randn(2, 4, 8, 8)
    np.save("unit.npy", latents.numpy())
    generated = ("decode", "unit.npy", "--run", "run", "--normalised")
    _, err = done(*generated, "--out", "x", capsys=capsys, code=2)
    assert "has no latent_norm: rpiae stats" in err

    out, _ = done(*stats, capsys=capsys)
    assert "stored in run/tokenizer as latent_norm" in out
    model = load_tokenizer("run")
    assert model.latent_mean is not None
    assert model.latent_mean.tolist() == pytest.approx(report["mean"])
    done(*generated, "--out", "pictures", capsys=capsys)
    with torch.no_grad():
        expected = model.decode(model.denormalise_latent(latents)).clamp(0, 1)
    with Image.open("pictures/00001.png") as picture:
        found = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
    assert (found - expected[1]).abs().max() <= 0.5 / 255 + 1e-6

    done("encode", "run", "folder:photos", "--out", "latents", "--workers", "0", capsys=capsys)
    out, _ = done("stats", "run", "latents", "--json", capsys=capsys)
    assert json.loads(out)["mean"] == pytest.approx(report["mean"])
    by = ("decode", "unit.npy", "--run", "run", "--normalised-by", "latents")
    done(*by, "--out", "by", capsys=capsys)
    with Image.open("by/00001.png") as a, Image.open("pictures/00001.png") as b:
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_a_run_starts_from_a_tokenizer_with_latent_norm(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done("stats", "run", "folder:photos", "--workers", "0", capsys=capsys)
    tree = short_run(here / "photos", here / "next") | {"init": "run"}
    happened = runs.run(runs.resolve(tree))
    assert any(isinstance(event, events.StepDone) for event in happened)
    happened.close()
    for event in (resumed := runs.resume(here / "next")):
        if isinstance(event, events.StepDone):
            break
    resumed.close()


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        ("encode nowhere folder:photos --out x", 1, "nowhere does not exist"),
        ("encode run folder:nowhere --out x", 1, "there is no such folder"),
        ("encode run foldr:photos --out x", 2, "Did you mean 'folder'"),
        ("encode run folder:photos --out run", 2, "run holds other things than latents"),
        ("encode run folder:photos --out /proc/x", 2, "cannot write to /proc/x"),
        ("encode run folder:photos --out x --label-column y", 2, "label_column: no such field"),
        ("encode run folder:photos --out x --workers -1", 2, "workers: must be at least 0"),
        (
            "encode run folder:photos --out x --image-size 64 --resize 48",
            2,
            "smaller than the crop",
        ),
        ("encode run folder:photos --out x --image-size 64 --crop centre", 1, "none of 7 images"),
        ("encode run folder:photos --out x --set recipe.x=1", 2, "fields of the dataset"),
        ("encode run folder:empty --out x", 1, "has no images"),
        ("decode nowhere --out x", 1, "nowhere does not exist"),
        ("decode photos --out x", 1, "holds no latents"),
        ("decode unit.npy --out x", 2, "name a tokenizer with --run"),
        ("decode notes.txt --run run --out x", 2, "ends in .safetensors"),
        ("decode wide.npy --run run --out x", 2, "have 5 channels"),
        ("decode unit.npy --run run --out photos", 2, "not an empty folder"),
        (
            "decode unit.npy --run run --out x --normalised --normalised-by y",
            2,
            "exclude each other",
        ),
        ("stats run folder:nowhere", 1, "there is no such folder"),
        ("stats nowhere folder:photos", 1, "nowhere does not exist"),
    ],
)
def test_bad_input_gives_one_clear_message(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: str, code: int, wanted: str
) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("no latents")
    np.save("unit.npy", np.zeros((1, 4, 8, 8), dtype=np.float32))
    np.save("wide.npy", np.zeros((1, 5, 8, 8), dtype=np.float32))
    _, err = done(*arguments.split(), capsys=capsys, code=code)
    assert wanted in err
    assert err.count("rpiae: ") == 1


def begun(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rpiae", *arguments], cwd=folder, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_write_the_same_files(here: Path) -> None:
    encode = ("encode", "run", "folder:photos", "--shard-size", "2", "--workers", "0", "--out")
    for folder, *more in (("one",), ("two", "--processes", "2")):
        out, err = begun(*encode, folder, *more, folder=here).communicate(timeout=120)
        assert f"{folder}: latents of 6 images, shards: 4, 1 skipped" in out, err
        assert out.count("shards: 4") == 1
    names = sorted(path.name for path in Path("one").iterdir() if path.name != ".lock")
    assert names == sorted(path.name for path in Path("two").iterdir() if path.name != ".lock")
    for name in names:
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name
    refused = begun(*encode, "two", "--processes", "2", "--flip", folder=here)
    _, err = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert err.count("made otherwise") == 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_keeps_complete_shards_and_says_how_to_go_on(here: Path, processes: str) -> None:
    write_photographs(here / "many", 400)
    encode = (
        "encode", "run", "folder:many", "--out", "latents", "--shard-size", "5", "--workers", "1",
        "--processes", processes,
    )  # fmt: skip
    process = begun(*encode, folder=here)
    deadline = time.monotonic() + 100
    while len(list(Path("latents").glob("*.safetensors"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.count("shards are complete and stay. Go on with:") == 1
    assert shlex.join(["rpiae", *encode]) in err
    complete = {p: p.stat().st_mtime_ns for p in Path("latents").glob("*.safetensors")}
    assert 3 <= len(complete) < 80
    again = begun(*encode, folder=here)
    out, err = again.communicate(timeout=200)
    assert "latents of 400 images, shards: 80" in out, err
    assert all(path.stat().st_mtime_ns == modified for path, modified in complete.items())
    assert not list(Path("latents").glob(".*.part"))
    assert LatentDataset("latents").name(399) == "b/99.png"

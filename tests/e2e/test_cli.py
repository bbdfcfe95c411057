"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rpiae.cli import main
from tests.commands import rpiae, rpiae_alone

TOY = (
    '[encoder]\nname = "vit"\nwidth = 32\ndepth = 2\nnum_heads = 2\nnative_grid = 8\n'
    '[bridge]\nname = "vb4"\n[decoder]\nname = "vit"\nwidth = 32\ndepth = 1\nnum_heads = 2\n'
    'mlp_hidden = 64\n[recipe]\nname = "quick"\nmax_steps = 2\nbatch_size = 4\n'
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run on the sample photographs."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "toy.toml").write_text(TOY)
    out, _ = rpiae_alone("build", "--config", "toy.toml", "--out", "a", cwd=folder)
    assert "dB" in out
    return folder / "a"


def test_build_leaves_everything_it_promises(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    keys = (
        "psnr", "ssim", "psnr_mean_colour", "psnr_pca", "drift", "seconds", "images_per_second",
        "parameters",
    )  # fmt: skip
    assert set(keys) <= set(summary)
    assert [stage["name"] for stage in summary["stages"]] == ["tune", "compress", "polish"]
    for stage in summary["stages"]:
        assert {"psnr", "ssim", "drift", "seconds", "images_per_second", "parameters"} <= set(stage)
    assert len(summary["photographs"]) == 2
    assert "mean colour" in summary["verdict"]
    for name in (
        "tokenizer/config.json",
        "best/polish/model.safetensors",
        "curves.png",
        "events.jsonl",
    ):
        assert (run_folder / name).stat().st_size > 0, name
    assert len(list((run_folder / "samples").glob("*.png"))) == 2
    curves = {path.parent.name for path in (run_folder / "tensorboard").glob("*/events.*")}
    assert {"tune", "compress", "polish"} <= curves


def test_a_second_run_in_one_folder_is_refused(run_folder: Path) -> None:
    before = (run_folder / "summary.json").read_bytes()
    _, err = rpiae("build", "--config", "toy.toml", "--out", "a", cwd=run_folder.parent, code=2)
    assert "already holds a run" in err
    assert "--resume" in err
    assert (run_folder / "summary.json").read_bytes() == before


def test_resume_of_a_finished_run_and_init_from_it(run_folder: Path) -> None:
    folder = run_folder.parent
    rpiae("build", "--resume", "a", cwd=folder)
    rpiae("build", "--config", "toy.toml", "--init", "a", "--out", "b", cwd=folder)
    pivots = [(folder / run / "pivot.safetensors").read_bytes() for run in ("a", "b")]
    assert pivots[0] == pivots[1]
    events = [json.loads(line) for line in (folder / "b" / "events.jsonl").read_text().splitlines()]
    first = next(e for e in events if e["event"] == "StepDone")
    assert first["terms"]["pivot"] > 0


def test_reconstruct(run_folder: Path, tmp_path: Path) -> None:
    Image.effect_noise((50, 37), 60).convert("RGB").save(tmp_path / "photo.png")
    out, _ = rpiae("reconstruct", str(run_folder), "photo.png", "--out", "both.png", cwd=tmp_path)
    assert "37×50" in out
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.size == (104, 37)
    rpiae("reconstruct", str(run_folder), "photo.png", "--out", "tiled.png", "--tile", cwd=tmp_path)
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    _, err = rpiae(
        "reconstruct", str(run_folder), "large.png", "--out", "x.png", cwd=tmp_path, code=2
    )
    assert "7,500 tokens" in err
    assert "--tile" in err


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        (
            ["build", "--encoder", "dinv2-b"],
            2,
            "no encoder named 'dinv2-b'. Did you mean 'dinov2-b'",
        ),
        (["build", "--recipe", "rae", "--bridge", "identity"], 2, "needs data to train on"),
        (["build", "--recipe", "rae", "--data", "sample", "--without", "lpisp"], 2, "'lpips'"),
        (["build", "--data", "folder:nowhere"], 1, "nowhere"),
        (["build", "--set", "recipe.stages[7].noise=1"], 2, "there is no recipe.stages[7]"),
        (["build", "--set", "seed"], 2, "path=value"),
        (["build", "--set", "seed='3'"], 2, "seed: expected int, got '3'"),
        (["build", "--set", "recipe.stages[0].noize=1"], 2, "did you mean 'noise'?"),
        (["build", "--set", "bridge.features=768"], 2, "was built for 768 channels but encoder"),
        (["build", "--set", "recipe.stages[0].train=['decodr']"], 2, "Did you mean 'decoder'"),
        (
            ["build", "--set", "recipe.stages[0].train=['decoder.blok.*']"],
            2,
            "matches no parameter",
        ),
        (["build", "--without", "lpip"], 2, "no stage has such a term"),
        (["build", "--out", "/proc/nowhere"], 2, "cannot write to"),
        (["build", "--device", "tpu"], 2, "auto, cpu, cuda"),
        (["build", "--resume", "nowhere"], 1, "not a run's folder"),
        (["build", "--resume", "x", "--out", "y"], 2, "leave out --out"),
        (["build", "--init", "nowhere"], 1, "does not exist"),
        (["build", "--config", "nowhere.toml"], 2, "cannot read nowhere.toml"),
        (["build", "--encoder", "timm:resnet18"], 2, "cannot be a pivot"),
        (["build", "--encoder", "timm:vit_smal_patch16_224"], 2, "Did you mean"),
        (["list", "encodrs"], 2, "Did you mean 'encoders' or "),
        (["list", "modles"], 2, "Did you mean 'models'?"),
        (["show", "vb6x4"], 2, "nothing is named"),
        (["reconstruct", "nowhere", "x.png", "--out", "y.png"], 1, "does not exist"),
        (["fetch", "tinny"], 2, "Did you mean 'tiny'"),
    ],
)
def test_bad_input_gives_one_clear_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    wanted: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert wanted in err
    assert err.count("rpiae: ") == 1
    assert "Traceback" not in err


def test_offline_weights_name_the_ways_out(tmp_path: Path) -> None:
    _, err = rpiae_alone(
        "fetch", "dinov2-s", cwd=tmp_path, code=1, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    for words in ("timm/vit_small_patch14_reg4_dinov2", "rpiae fetch", "encoder.weights", "pretrained=false"):  # fmt: skip
        assert words in err


def test_all_problems_of_a_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'seed = "x"\n[bridge]\nname = "vb4"\nwidht = 3\n[encoder]\nname = "tiny"\ndepth = 0\n'
    )
    _, err = rpiae("config", "check", "run.toml", cwd=tmp_path, code=2)
    assert "run.toml has 3 problems" in err
    for words in ("seed: expected int", "bridge.widht: no such field", "encoder.depth: must be at"):
        assert words in err


def test_config_new_is_a_config_that_checks(tmp_path: Path) -> None:
    rpiae("config", "new", "run.toml", cwd=tmp_path)
    out, _ = rpiae("config", "check", "run.toml", cwd=tmp_path)
    assert "run.toml is fine" in out


def test_plan_of_the_papers_model(tmp_path: Path) -> None:
    out, _ = rpiae(
        "build", "--encoder", "dinov2-b", "--bridge", "vb64", "--dry-run", cwd=tmp_path,
        COLUMNS="200",
    )  # fmt: skip
    for words in ("4.2 M + 43.2 M", "86.", "415 M", "64×16×16", "1·lpips", "Apache-2.0"):
        assert words in out
    assert not (tmp_path / "runs").exists()


def children_times() -> float:
    """Seconds of the processor that ended children took; a busy machine does not change them much."""
    times = os.times()
    return times.children_user + times.children_system


def test_list_is_quick_and_machine_readable(tmp_path: Path) -> None:
    before = children_times()
    out, _ = rpiae_alone("list", "--json", cwd=tmp_path)
    seconds = children_times() - before
    listing = json.loads(out)
    assert {"tiny", "dinov2-b", "timm"} <= {row["name"] for row in listing["encoders"]}
    assert {"quick", "rpiae"} <= {row["name"] for row in listing["recipes"]}
    assert {row["name"]: row["kind"] for row in listing["models"]} == {
        "cifar10": "generator",
        "cifar10-vb16": "tokenizer",
    }
    assert seconds < 5, "list loads something heavy"
    probe = "import sys, rpiae.cli.listing; print('torch' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "False"


def test_doctor(tmp_path: Path) -> None:
    out, _ = rpiae("doctor", "--json", cwd=tmp_path)
    report = json.loads(out)
    assert "TFLOP/s" in report["matrix products"]
    assert report["attention"].partition(":")[0] in ("sdpa", "xformers", "math")

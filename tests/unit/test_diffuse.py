"""``rpiae diffuse`` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from rpiae.core.config.tree import read_toml
from rpiae.latents.layout import tree_digest
from tests.commands import rpiae, rpiae_alone
from tests.short_run import write_latents

GENERATOR = (
    "--set", "generator.width=16", "--set", "generator.depth=1", "--set", "generator.num_heads=2",
    "--set", "recipe.batch_size=4", "--set", "recipe.checkpoint_every=2", "--device", "cpu",
    "--precision", "fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"), flip=True)


def unlabelled(latents: Path, folder: Path) -> Path:
    """Latents of pictures in no class folder."""
    (folder / "plain").mkdir()
    for i in range(4):
        Image.effect_noise((16, 16), 80).convert("RGB").save(folder / "plain" / f"{i}.png")
    words = ("encode", str(latents.parent / "tokenizer"), "folder:plain", "--out", "latents")
    rpiae(*words, "--workers", "0", "--device", "cpu", "--image-size", "16", cwd=folder)
    return folder / "latents"


def test_a_plan_is_printed_and_nothing_written(latents: Path, tmp_path: Path) -> None:
    out, _ = rpiae(
        "diffuse", str(latents), "--generator", "dit-b", "--recipe", "flow-quick", "--dry-run",
        "--out", "g", "--held-out", "2", cwd=tmp_path,
    )  # fmt: skip
    plain = " ".join(out.split())
    for text in (
        "generator dit-b (given)", "latent 4×4×4", "3 classes (blue, green, red)",
        "latents normalised per channel; velocity at", "10% of labels dropped",
        "stages of recipe flow-quick (given)", "10 images to train on", "memory", "out g",
    ):  # fmt: skip
        assert text in plain, text
    assert not (tmp_path / "g").exists()


def test_a_run_is_trained_and_gone_on_with(latents: Path, tmp_path: Path) -> None:
    out, err = rpiae(
        "diffuse", str(latents), "--out", "g", *GENERATOR, "--set", "recipe.max_steps=4",
        "--held-out", "2", "--seed", "5", cwd=tmp_path,
    )  # fmt: skip
    assert "sample from it:\n  rpiae sample g" in out
    assert "flow 4/4: flow " in err
    assert "held-out flow " in err
    config = read_toml(tmp_path / "g" / "config.toml")
    assert (config["seed"], config["held_out"], config["out"]) == (5, 2, "g")
    _, err = rpiae("diffuse", "--resume", "g", "--set", "recipe.checkpoint_every=3", cwd=tmp_path)
    assert "changed since the run began: recipe.checkpoint_every" in err
    out, _ = rpiae("diffuse", "--resume", "g", "--dry-run", cwd=tmp_path)
    assert "stages of recipe flow-quick" in out


def test_images_are_encoded_on_the_way(latents: Path, tmp_path: Path) -> None:
    folder = latents.parent
    rpiae(
        "diffuse", "--data", f"folder:{folder / 'images'}", "--tokenizer",
        str(folder / "tokenizer"), "--out", "g", *GENERATOR, "--set", "recipe.max_steps=2", "--set",
        "data.image_size=16", "--set", "data.workers=0", "--set", "data.held_out=2", "--set",
        "flip=true", cwd=tmp_path,
    )  # fmt: skip
    summary = json.loads((tmp_path / "g" / "summary.json").read_text())
    assert (summary["num_samples"], summary["num_classes"]) == (10, 3)


@pytest.mark.slow
def test_two_processes(latents: Path, tmp_path: Path) -> None:
    words = ("diffuse", str(latents), *GENERATOR, "--set", "recipe.max_steps=2")
    rpiae_alone(*words, "--out", "two", "--processes", "2", cwd=tmp_path)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["processes"] == 2


def test_a_folder_that_holds_no_latents(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    _, err = rpiae("diffuse", "photos", cwd=tmp_path, code=1)
    assert "photos" in err
    assert "rpiae encode" in err
    _, err = rpiae("diffuse", "nowhere", cwd=tmp_path, code=1)
    assert "nowhere" in err


def test_latents_without_labels_have_no_classes(latents: Path, tmp_path: Path) -> None:
    plain = unlabelled(latents, tmp_path)
    words = ("diffuse", str(plain), "--out", "g", *GENERATOR)
    _, err = rpiae(*words, "--set", "generator.num_classes=10", cwd=tmp_path, code=2)
    assert "built for 10 classes but" in err
    assert "gives 0" in err
    out, _ = rpiae(*words, "--dry-run", cwd=tmp_path)
    assert "no classes" in out
    assert "there are no labels, so the generator takes no classes" in " ".join(out.split())


def test_a_run_of_another_kind_is_not_gone_on_with(latents: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "config.toml").write_text('encoder = "tiny"\n')
    _, err = rpiae("diffuse", "--resume", "t", cwd=tmp_path, code=1)
    assert "t is not a generator's run" in err
    assert "rpiae build --resume" in err
    _, err = rpiae("diffuse", "--resume", "nowhere", cwd=tmp_path, code=1)
    assert "nowhere is not a run's folder" in err


def test_latents_that_are_not_complete(latents: Path, tmp_path: Path) -> None:
    index = shutil.copytree(latents, tmp_path / "half") / "index.json"
    text = json.loads(index.read_text()) | {"complete": False}
    index.write_text(json.dumps(text | {"sha256": tree_digest(text)}))
    _, err = rpiae("diffuse", "half", cwd=tmp_path, code=1)
    assert "half is not complete" in err
    assert "Call rpiae encode again" in err


def test_a_tokenizer_that_moved(latents: Path, tmp_path: Path) -> None:
    folder = latents.parent
    words = (
        "diffuse", "--data", f"folder:{folder / 'images'}", "--set", "data.image_size=16",
        "--dry-run",
    )  # fmt: skip
    _, err = rpiae(*words, "--tokenizer", "gone", cwd=tmp_path, code=1)
    assert "gone does not exist" in err
    moved = shutil.copytree(latents, tmp_path / "latents")
    run = ("diffuse", str(moved), "--out", "g", *GENERATOR, "--set", "recipe.max_steps=1")
    tokenizer = shutil.copytree(folder / "tokenizer", tmp_path / "there")
    rpiae(*run, "--tokenizer", str(tokenizer), cwd=tmp_path)
    tokenizer.rename(tmp_path / "elsewhere")
    sampled = ("sample", "g", "--out", "s.png", "--steps", "1", "--count", "3")
    _, err = rpiae(*sampled, cwd=tmp_path, code=1)
    assert "is gone or damaged" in err
    assert "--tokenizer" in err
    rpiae(*sampled, "--tokenizer", "elsewhere", cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--generator", "dit-b"), "nothing is named that --generator could go with"),
        (("--set", "recipe.max_steps=3", "--held-out", "3"), "--held-out, --set could go with"),
        (("--processes", "2"), "--processes"),
        (("LATENTS", "--data", "sample"), "both latents and data are named"),
        (("--data", "sample"), "name one with --tokenizer"),
        (("--resume", "g", "--out", "h", "--init", "a"), "leave out --out, --init"),
        (("LATENTS", "--generator", "dit-q"), "no generator named 'dit-q'"),
    ],
)
def test_what_does_not_go_together(
    latents: Path, tmp_path: Path, words: tuple[str, ...], problem: str
) -> None:
    given = [str(latents) if word == "LATENTS" else word for word in words]
    _, err = rpiae("diffuse", *given, cwd=tmp_path, code=2)
    assert problem in " ".join(err.split())

"""``rpiae eval`` of generators, and of samples in files and folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpiae.cli import main
from rpiae.core.errors import UsageError
from rpiae.core.model.resolve import part_config
from rpiae.evaluation.held_out import held_out_metrics
from rpiae.evaluation.records import read_evaluations
from tests.toy_generators import NAMES, write_run

#: A command line → exit code, what was printed, what was said.
Command = Callable[..., tuple[int, str, str]]

SIDE = 8
MADE = ("--count", "30", "--steps", "3", "--guidance", "1.5", "--device", "cpu")
METRICS = "gfd:tiny,precision,recall,class-accuracy"
VALUES = ["gfd[tiny]", "precision[tiny]", "recall[tiny]", "class_accuracy[tiny]"]


def write_classes(
    folder: Path, *, seed: int, names: tuple[str, ...] = NAMES, side: int = SIDE
) -> Path:
    """Images of classes that differ in colour."""
    draws = np.random.default_rng(seed)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = draws.normal(90, 15, (side, side, 3))
            pixels[..., number % 3] += 60
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator, its samples in a file and in a folder, and real images."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "g")
    for name, seed in (("val", 1), ("train", 2)):
        write_classes(folder / name, seed=seed)
    for out in ("samples.npz", "shots"):
        assert main(["sample", str(folder / "g"), *MADE, "--out", str(folder / out)]) == 0
    return folder


@pytest.fixture
def command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(place)
    capsys.readouterr()

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["eval", *arguments])
        return code, *capsys.readouterr()

    return call


def numbers(out: str) -> dict[str, Any]:
    (found,) = json.loads(out).values()
    return found["metrics"]  # type: ignore[no-any-return]  # parsed


def test_a_generator_its_file_and_its_folder_have_the_same_numbers(
    command: Command, place: Path
) -> None:
    given = ("--data", "folder:val", "--metrics", METRICS, "--json")
    code, out, err = command("g", *given, *MADE)
    assert code == 0, err
    expected = numbers(out)
    assert list(expected) == [*VALUES, "class_accuracy_real[tiny]"]
    for name in ("samples.npz", "shots"):
        code, out, err = command(name, *given, "--device", "cpu")
        assert code == 0, err
        assert numbers(out) == pytest.approx(expected, rel=1e-4)
    for folder in ("g", "samples-evaluation", "shots-evaluation"):
        assert (place / folder / "evaluation.json").is_file()
        with Image.open(place / folder / "pictures" / "samples.png") as sheet:
            assert sheet.width > 3 * SIDE


def test_every_number_says_how_samples_were_made(command: Command, place: Path) -> None:
    given = ("--data", "folder:val", "--metrics", "gfd:tiny,precision")
    code, out, err = command("g", *given, *MADE, "--interval", "0.1,0.9", "--seed", "4")
    assert code == 0, err
    assert (
        "30 samples of g, equal labels, 3 steps of euler to 0, guidance 1.5 on [0.1, 0.9], seed 4, in "
        "fp32, rounded to 8 bits, sha256 "
    ) in out
    assert "compared with 36 images of val (ADM: " in out
    assert "gfd[tiny], precision[tiny]: in the features of encoder, " in out
    record = read_evaluations(place / "g" / "evaluation.json")[-1]
    for name in ("gfd[tiny]", "precision[tiny]"):
        facts = record["protocol"]["metrics"][name]
        assert facts["samples"] == {
            "count": 30, "labels": "equal", "steps": 3, "sampler": "euler", "end": 0.0,
            "points": False, "guidance": 1.5, "interval": [0.1, 0.9], "guide": "no class",
            "seed": 4, "precision": "fp32", "round": "nearest",
        }  # fmt: skip
        assert facts["real"]["count"] == 36
        assert {"crop", "images_sha256"} <= facts["real"].keys()
    assert record["protocol"]["samples"]["images_sha256"]
    code, _, err = command("g", *given, *MADE, "--seed", "4")
    assert "replaces gfd[tiny] = " in err
    assert "samples.interval: [0.1, 0.9] and [0.0, 1.0]" in err


def test_without_guidance_nothing_is_said_of_it(command: Command, place: Path) -> None:
    made = ("--count", "7", "--steps", "2", "--labels", "random", "--device", "cpu")
    code, out, err = command("g", "--data", "folder:val", "--metrics", "precision", *made)
    assert code == 0, err
    assert "random labels, 2 steps of euler to 0, no guidance, seed 0" in out
    facts = read_evaluations(place / "g" / "evaluation.json")[-1]["protocol"]["samples"]
    assert not {"interval", "guide"} & facts.keys()
    uneven = ("--count", "7", "--steps", "2", "--device", "cpu")
    _, _, err = command("g", "--data", "folder:val", "--metrics", "precision", *uneven)
    assert "7 samples cannot be the same number of each of 3 classes" in err


def test_two_generators_stand_side_by_side(command: Command, place: Path) -> None:
    write_run(place / "other", seed=1)
    given = ("--data", "folder:val", "--metrics", "gfd:tiny", "--json")
    code, out, err = command("g", "other", *given, *MADE)
    assert code == 0, err
    found = [each["metrics"]["gfd[tiny]"] for each in json.loads(out).values()]
    assert len(set(found)) == 2
    code, _, err = command("g", "samples.npz", *given, "--device", "cpu", "--count", "30")
    assert code == 2
    assert "gfd[tiny] of g and of samples.npz cannot be compared" in err


@pytest.mark.slow
def test_two_processes_find_what_one_does(place: Path) -> None:
    given = ["--data", "folder:val", "--train", "folder:train", "--json", *MADE]
    found = []
    for processes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "rpiae", "eval", "g", *given, "--processes", processes,
             "--metrics", f"{METRICS},nearest"],
            capture_output=True, text=True, check=False, cwd=place,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(numbers(done.stdout))
    assert len(found[0]) == 6
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-4)


def test_real_images_against_themselves(command: Command) -> None:
    given = ("--data", "folder:val", "--metrics", METRICS, "--json", "--batch-size")
    code, out, err = command("val", *given, "5")
    assert code == 0, err
    found = numbers(out)
    assert found["gfd[tiny]"] == pytest.approx(0, abs=1e-6)
    assert [found[name] for name in VALUES[1:]] == [1.0, 1.0, 1.0]
    assert "class_accuracy_real[tiny]" in found
    code, out, _ = command("train", *given, "36")
    other = numbers(out)
    assert other["gfd[tiny]"] > 1e-3


def test_copies_are_shown_beside_what_they_are_of(command: Command, place: Path) -> None:
    copies = shutil.copytree(place / "train", place / "copies")
    given = ("--data", "folder:val", "--train", "folder:train", "--metrics", "nearest")
    code, out, err = command(str(copies), *given)
    assert code == 0, err
    assert "learned from 36 images of train" in out
    assert "36 of the samples are training images to the pixel" in err
    record = read_evaluations(place / "copies-evaluation" / "evaluation.json")[-1]
    assert record["metrics"]["nearest_ratio[tiny]"] == pytest.approx(0, abs=1e-4)
    assert "training" in record["protocol"]["metrics"]["nearest_ratio[tiny]"]
    with Image.open(place / "copies-evaluation" / "pictures" / "nearest.png") as picture:
        sheet = np.asarray(picture)
    left, beside = sheet[:SIDE, :SIDE], sheet[:SIDE, SIDE + 12 : 2 * SIDE + 12]
    assert np.array_equal(left, beside)
    assert left.std() > 1


def test_statistics_of_real_images_stand_in_for_them(command: Command, tmp_path: Path) -> None:
    file = str(tmp_path / "real.safetensors")
    given = ("--metrics", "gfd:tiny", "--device", "cpu", "--json")
    code, out, err = command("shots", "--data", "folder:val", "--write-reference", file, *given)
    assert code == 0, err
    expected = numbers(out)
    code, out, err = command("samples.npz", "--reference", file, *given)
    assert code == 0, err
    assert numbers(out) == pytest.approx(expected)
    code, out, _ = command("samples.npz", "--reference", file, *given[:-1])
    assert "gfd[tiny]: compared with 36 images of val (ADM: " in out
    code, _, err = command(
        "g/tokenizer", "--data", "folder:val", "--metrics", "rfd:tiny", "--reference", file
    )
    assert code == 2
    assert "a reference for generation" in err
    code, _, err = command("samples.npz", "--reference", file, "--metrics", "precision")
    assert code == 2
    assert "one Fréchet distance of generated images, and the metrics name 0" in err


DATA = ("--data", "folder:val")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("g", *DATA, "--metrics", "psnr,gfd:tiny"), "psnr cannot be measured of generated images"),
        (("g/tokenizer", *DATA, "--metrics", "gfd:tiny,psnr"), "gfd:tiny cannot be measured of a tok"),
        (("g/tokenizer", *DATA, "--steps", "3"), "--steps say how a generator is sampled"),
        (("g", "g/tokenizer", *DATA), "g is of generated images and g/tokenizer is not"),
        (("g", "--metrics", "gfd:tiny"), "gfd:tiny cannot be measured without real images: name them with --d"),
        (("g", *DATA, "--metrics", "nearest"), "nearest cannot be measured without the images that were trained on: name them"),
        (("g", *DATA, "--train", "folder:val"), "both what is learned from and what is measured on"),
        (("g", *DATA, "--image-size", "8"), "--image-size: real images are cropped to the size of the s"),
        (("g", *DATA, "--every", "2"), "--every is about clips"),
        (("g", *DATA, "--guidance", "-1"), "guidance must be 0 or more"),
        (("samples.npz", *DATA, "--seed", "3"), "--seed say how samples are made, and those of samples.npz"),
        (("shots", *DATA, "--precision", "bf16", "--round", "truncate"), "--precision and --round say how"),
        (("g", *DATA, "--set", "data.image_size=16"), "have 8 pixels and the crops of val 16"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    command: Command, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = command(*arguments, "--device", "cpu")
    assert (code, out) == (2, ""), err
    assert message in err
    assert "unexpected" not in err


def test_classes_that_differ_are_named(command: Command, place: Path) -> None:
    for folder, names, message in (
        ("fewer", NAMES[:2], "fewer has no class 'ship', which g has: the real images are of 2 cl"),
        (
            "more",
            (*NAMES, "truck"),
            "g has no class 'truck', which more has: the real images are of 4",
        ),
    ):
        write_classes(place / folder, seed=3, names=names)
        for samples, made in (("g", MADE), ("samples.npz", ()), ("shots", ())):
            code, _, err = command(samples, "--data", f"folder:{folder}", *made)
            assert code == 2
            assert message.replace("g has", f"{samples} has") in err
            assert "numbers those after it anew" in err
    # Another order of the same names is no other classes.
    order = ("--set", 'data.classes=["ship", "cat", "dog"]', "--metrics", "class-accuracy")
    code, out, err = command("val", *DATA, *order, "--json")
    assert code == 0, err
    assert numbers(out)["class_accuracy[tiny]"] == 1.0
    # A folder of samples shows the classes that it has, not all there are.
    code, out, err = command("fewer", *DATA, "--metrics", "class-accuracy", "--json")
    assert code == 0, err
    assert numbers(out)["class_accuracy[tiny]"] == 1.0


def test_classes_of_unnamed_samples_are_numbers(command: Command, place: Path) -> None:
    colours = ("a", "cat", "dog")
    write_classes(place / "{others}", seed=4, names=colours)
    write_classes(place / "four", seed=6, names=(*colours, "b"))
    given = ("--metrics", "class-accuracy", "--json", "--device", "cpu")
    named = ("--data", "folder:{others}", "--train", "folder:four")
    with np.load(place / "samples.npz") as file:
        np.savez(place / "unnamed.npz", arr_0=file["arr_0"], arr_1=file["arr_1"])
    code, out, err = command("unnamed.npz", *named, *given)
    assert code == 0, err
    (found,) = json.loads(out).values()
    assert list(found["details"]["class-accuracy"]["by_class"]) == list(colours)
    assert found["metrics"]["class_accuracy_real[tiny]"] > 0.6  # a and b look alike


def test_images_without_labels_have_no_class_accuracy(command: Command, place: Path) -> None:
    plain = place / "plain"
    plain.mkdir()
    for path in (place / "val" / "cat").glob("*.png"):
        shutil.copy(path, plain)
    write_run(place / "unlabelled", names=())
    given = ("--metrics", "class-accuracy,precision", "--device", "cpu")
    for arguments, whose in (
        (("g", "--data", "folder:plain"), "plain"),
        (("plain", *DATA), "plain"),
        (("unlabelled", *DATA), "unlabelled"),
        (("g", *DATA, "--labels", "none"), "g"),
    ):
        code, _, err = command(*arguments, *given)
        assert code == 2
        assert f"class-accuracy needs labels, and {whose} has none" in err
    code, out, err = command("unlabelled", *DATA, "--metrics", "precision", *MADE[:4])
    assert code == 0, err
    assert "no labels" in out


def test_files_that_hold_no_samples_are_said(command: Command, tmp_path: Path) -> None:
    images = np.zeros((4, SIDE, SIDE, 3), np.uint8)
    for arrays, message in (
        ({"x": images}, "has no arr_0: samples lie in arr_0"),
        ({"arr_0": images / 255}, "arr_0 holds float64 of shape [4, 8, 8, 3]; samples are uint8"),
        ({"arr_0": images.transpose(0, 3, 1, 2)}, "holds uint8 of shape [4, 3, 8, 8]; samples are"),
        ({"arr_0": images[:, :4]}, "are 4×8 pixels, and real images are measured as square crops"),
        ({"arr_0": images, "arr_1": np.arange(3)}, "arr_1 holds int64 of shape [3]; labels are"),
        (
            {"arr_0": images, "arr_1": np.arange(4) - 2},
            "arr_1 holds -2, which is no label: they ar",
        ),
        (
            {"arr_0": images, "label_names": np.arange(4)},
            "label_names holds int64 of shape [4]; names",
        ),
        (
            {"arr_0": images, "arr_1": np.arange(4), "label_names": np.array(["a"])},
            "one for each of 4 cl",
        ),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        code, _, err = command(str(tmp_path / "x.npz"), *DATA)
        assert code == 2, message
        assert message in err
    np.savez_compressed(tmp_path / "x.npz", arr_0=images + 7, arr_1=np.arange(4) % 2)
    code, out, err = command(str(tmp_path / "x.npz"), *DATA, "--metrics", "precision")
    assert code == 0, err
    assert "4 samples of" in out
    np.savez(tmp_path / "x.npz", arr_0=images)
    content = (tmp_path / "x.npz").read_bytes()
    for damaged in (
        content[:60], b"nothing", content.replace(b"NUMPY", b"MUMPY"),
        content.replace(b"(4, 8,", b"(4, 9,"),
    ):  # fmt: skip
        (tmp_path / "x.npz").write_bytes(damaged)
        code, _, err = command(str(tmp_path / "x.npz"), *DATA)
        assert code == 1
        assert "x.npz cannot be read as samples" in err
        assert "unexpected" not in err


def test_names_of_nothing_are_said(command: Command, place: Path) -> None:
    code, _, err = command("none.npz", *DATA)
    assert code == 1
    assert "none.npz cannot be read as samples: No such file" in err
    (place / "empty").mkdir()
    code, _, err = command("empty", *DATA)
    assert code == 1
    assert "empty has no finished tokenizer yet" in err
    (place / "begun").mkdir()
    (place / "begun" / "config.toml").write_text('generator = "dit-t"\n')
    code, _, err = command("begun", *DATA)
    assert code == 1
    assert "begun has no finished generator yet" in err


def test_samples_of_several_sizes_are_refused(command: Command, place: Path) -> None:
    mixed = write_classes(place / "mixed", seed=5)
    Image.new("RGB", (SIDE + 1, SIDE + 1)).save(mixed / "dog" / "3.png")
    code, _, err = command("mixed", *DATA, "--metrics", "precision")
    assert code == 1
    assert "dog/3.png is 9×9 pixels, and the first sample 8×8: nothing is resized" in err


def test_too_few_samples_cost_no_other_number(command: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", arr_0=np.zeros((2, SIDE, SIDE, 3), np.uint8))
    given = (*DATA, "--metrics", "gfd:tiny,precision", "--json")
    code, out, err = command(str(tmp_path / "few.npz"), *given)
    assert code == 0, err
    assert numbers(out).keys() == {"gfd[tiny]"}
    assert "precision was not measured: the 3 nearest neighbours of an image need more" in err


def test_a_run_that_trains_measures_no_samples() -> None:
    assert "samples" in part_config("metrics", "gfd:tiny").needs  # type: ignore[attr-defined]  # a metric's
    with pytest.raises(UsageError, match=r"recall cannot be measured of a tokenizer"):
        held_out_metrics(["psnr", "recall"])

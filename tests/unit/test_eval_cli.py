"""``rpiae eval``, ``probe``, ``encode`` and ``stats`` as far as they name images and report on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rpiae
from rpiae.cli import main
from rpiae.core.model.folders import save_tokenizer
from tests.toys import DECODERS, ENCODERS
from tests.unit.test_evaluation import write_classes

#: A command line → exit code, what was printed, what was said.
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokenizers, of crops of 32 and of 16 pixels, and images as files and as tables."""
    folder = tmp_path_factory.mktemp("place")
    for name, grid in (("a", 8), ("b", 4)):
        encoder = ENCODERS["vit"] | {"native_grid": grid}
        save_tokenizer(
            rpiae.build(encoder=encoder, bridge="vb4", decoder=DECODERS["vit"]), folder / name
        )
    for name, seed in (("test", 1), ("train", 2)):
        write_classes(folder / name, seed=seed)
        files = [path for path in sorted((folder / name).rglob("*.png")) if path.name != "3.png"]
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        labels = [("across", "down", "plain").index(path.parent.name) for path in files]
        pq.write_table(pa.table({"img": rows, "kind": labels}), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(place)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return call


def test_every_verb_takes_the_rule_and_names_it(command: Command, tmp_path: Path) -> None:
    adm = "ADM: halved by a box filter, then bicubic to a short side of 24, centre crop 24×24"
    size = ("--image-size", "24")
    _, out, _ = command("eval", "a", "--data", "folder:test", "--metrics", "psnr", *size)
    assert f"26 images of test ({adm}), 1 skipped, sha256 " in out
    other = ("--crop", "centre", "--resize", "40")
    _, out, _ = command("eval", "a", "--data", "folder:test", "--metrics", "psnr", *size, *other)
    assert "(short side resized to 40, centre crop 24×24)" in out
    code, out, _ = command(
        "probe", "tiny", "--train", "folder:train", "--test", "folder:test", *size, "--json"
    )
    assert code == 0
    assert {json.loads(out)[part]["crop"] for part in ("training", "testing")} == {adm}
    assert len(json.loads(out)["skipped"]) == 2
    crops = {}
    for name, options in (("one", ()), ("two", other)):
        command("encode", "a", "folder:test", "--out", str(tmp_path / name), *size, *options)
        crops[name] = json.loads((tmp_path / name / "index.json").read_text())["crop"]
    assert crops == {"one": adm, "two": "short side resized to 40, centre crop 24×24"}
    means = [
        json.loads(command("stats", "a", "folder:test", "--dry-run", "--json", *size, *o)[1])[
            "mean"
        ]
        for o in ((), other)
    ]
    assert means[0] != means[1]
    code, _, err = command("stats", "a", str(tmp_path / "one"), "--crop", "adm")
    assert code == 2
    assert "leave out --crop" in err


def test_rounding_and_precision_are_said(command: Command) -> None:
    options = ("--data", "folder:test", "--metrics", "psnr", "--round", "truncate")
    _, out, _ = command("eval", "a", *options, "--precision", "bf16")
    assert "tokenizer in bf16, truncated to 8 bits" in out
    _, out, _ = command("eval", "a", "--data", "folder:test", "--metrics", "psnr")
    assert "tokenizer in fp32, rounded to 8 bits" in out


def test_fields_of_every_dataset_can_be_set(command: Command) -> None:
    data = ("--data", "parquet:test.parquet", "--train", "parquet:train.parquet")
    fields = [
        f"--set={name}.{field}"
        for name in ("data", "train")
        for field in ("column=img", "label_column=kind")
    ]
    code, out, err = command("eval", "a", *data, *fields, "--metrics", "probe,psnr", "--json")
    assert code == 0, err
    found = json.loads(out)["a"]
    assert {"psnr", "probe"} <= found["metrics"].keys()
    assert found["protocol"]["data"]["column"] == "img"
    sets = ("--train", "parquet:train.parquet", "--test", "parquet:test.parquet")
    fields = [text.replace("=data.", "=test.") for text in fields]
    code, out, err = command("probe", "tiny", *sets, *fields, "--json")
    assert code == 0, err
    assert json.loads(out)["linear"]["classes"]["classes"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "column=img"), "by data.FIELD=VALUE or train.FIELD=VALUE"),
        (("--set", "test.column=img"), "by data.FIELD=VALUE or train.FIELD=VALUE"),
        (("--set", "train.column=img"), "is about --train, which is not given"),
        (("--set", "data"), "is not of the form path=value"),
        (("--set", "data=x"), "set fields of the dataset, such as data.resize=288"),
        (("--set", "data.colum=img"), "did you mean 'column'"),
        ((), "Set data.column"),
        (("--set", "data.column=img", "--train", "parquet:train.parquet", "--metrics", "rotation"),
         "by --set train.FIELD=VALUE"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_set_is_said(
    command: Command, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = command("eval", "a", "--data", "parquet:test.parquet", *arguments)
    assert code in (1, 2)
    assert message in err
    assert "unexpected" not in err


def test_weights_are_named_before_anything_starts(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = ("--data", "folder:test", "--metrics", "lpips,psnr,rfid,rfd:tiny")
    code, out, err = command("eval", "a", *options)
    assert (code, out) == (1, "")
    assert "fetched first: metric 'lpips', metric 'rfid'\n" in err
    assert "metrics lack 2 files: " in err
    assert err.index("fetched first") < err.index("metrics lack")


def test_results_add_up_in_the_file(command: Command, place: Path) -> None:
    (place / "a" / "evaluation.json").unlink(missing_ok=True)
    command("eval", "a", "--data", "folder:test", "--metrics", "psnr")
    _, _, err = command("eval", "a", "--data", "folder:test", "--metrics", "ssim")
    assert "replaces" not in err
    found = json.loads((place / "a" / "evaluation.json").read_text())
    assert {"psnr", "psnr_pooled", "ssim"} == found["metrics"].keys()
    _, _, err = command("eval", "a", "--data", "folder:test", "--metrics", "ssim", "--images", "5")
    assert "note: a: replaces ssim = " in err
    assert "count: 26 and 5" in err
    assert json.loads((place / "a" / "evaluation.json").read_text())["metrics"]["psnr"]


def test_results_that_cannot_be_stored_are_printed(command: Command, place: Path) -> None:
    (place / "a" / "evaluation.json").unlink(missing_ok=True)
    (place / "a" / "evaluation.json.part").mkdir()
    try:
        code, out, err = command("eval", "a", "--data", "folder:test", "--metrics", "psnr")
        assert code == 1
        assert "psnr_pooled" in out
        assert "not stored: a: cannot write a/evaluation.json: Is a directory" in err
        assert "all of it is in" not in out
        both = (
            "eval",
            "a",
            "b",
            "--data",
            "folder:test",
            "--metrics",
            "psnr",
            "--image-size",
            "16",
        )
        code, out, _ = command(*both, "--json")
        assert code == 1
        assert json.loads(out).keys() == {"a", "b"}
    finally:
        (place / "a" / "evaluation.json.part").rmdir()


def test_what_was_measured_before_an_error_is_printed(command: Command, place: Path) -> None:
    (place / "broken").mkdir(exist_ok=True)
    (place / "broken" / "config.json").write_text("{}")
    (place / "broken" / "model.safetensors").write_bytes(b"")
    code, out, err = command("eval", "a", "broken", "--data", "folder:test", "--metrics", "psnr")
    assert code == 1
    assert "psnr_pooled" in out
    assert "broken" in err


def test_numbers_of_other_images_do_not_stand_side_by_side(command: Command) -> None:
    code, out, err = command("eval", "a", "b", "--data", "folder:test", "--metrics", "psnr")
    assert code == 2
    assert out.count("psnr_pooled") == 2, "a table of its own for each"
    assert "to a short side of 32" in out
    assert "to a short side of 16" in out
    assert "psnr of a and of b cannot be compared" in err
    options = ("--data", "folder:test", "--metrics", "psnr", "--image-size", "16")
    code, out, _ = command("eval", "a", "b", *options)
    assert code == 0
    assert out.count("psnr_pooled") == 1


def test_skipped_images_are_counted_and_named_once(command: Command) -> None:
    options = ("--data", "folder:test", "--metrics", "psnr", "--image-size", "16")
    _, out, err = command("eval", "a", "b", *options)
    assert "26 images of test" in out
    assert "skipped 1 image:\n  test/across/3.png: " in err
    assert err.count("3.png") == 1
    _, out, _ = command("eval", "a", *options, "--json")
    found = json.loads(out)["a"]
    assert found["protocol"]["skipped"] == len(found["skipped"]) == 1


def test_names_that_are_no_text(command: Command, place: Path) -> None:
    (place / "odd").mkdir(exist_ok=True)
    content = (place / "test" / "plain" / "1.png").read_bytes()
    for name, written in ((b"a.png", content), (b"b\xff.png", b"no image")):
        Path(os.fsdecode(os.path.join(os.fsencode(place / "odd"), name))).write_bytes(written)
    options = ("eval", "a", "--data", "folder:odd", "--metrics", "psnr")
    code, out, err = command(*options)
    assert code == 0, err
    assert "1 image of odd" in out
    assert "b\\xff.png" in err
    code, out, _ = command(*options, "--json")
    assert code == 0
    skipped = [json.loads(out)["a"]["skipped"]]
    skipped.append(json.loads((place / "a" / "evaluation.json").read_text())["skipped"])
    for (text,) in skipped:
        assert "b\\xff.png" in text
        text.encode("utf-8")

"""Runs of samples: what they write, and that they go on where they stopped."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from PIL import Image
from safetensors.torch import load_file

from rpiae.core.errors import CheckpointError, DataError, RunError, UsageError
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.samples import SampleFile, SampleFolder
from rpiae.latents.pace import Progressed
from rpiae.latents.writing import Notice
from rpiae.sampling import LoadedGenerator, SamplingConfig, chunks, job, outputs
from rpiae.sampling.classes import equal_labels
from rpiae.sampling.job import Finished, Started, check_output, make_samples, work_folder
from rpiae.sampling.outputs import GAP, WIDE_GAP, to_bytes
from rpiae.sampling.plan import SamplingPlan, make_plan
from tests.toy_generators import toy_generator, toy_tokenizer

CONFIG = SamplingConfig(steps=2, guidance=1.5)
SIDE = 8  # of the toys' images


@pytest.fixture(scope="module")
def generator() -> LoadedGenerator:
    tokenizer = toy_tokenizer()
    return LoadedGenerator(model=toy_generator(tokenizer), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(device="cpu", precision="fp32")


class Counting:
    """Counts the samples that a generator makes."""

    def __init__(self, generator: LoadedGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[int] = []
        real = generator.latents_at_once

        def counted(config: Any, labels: Any, indices: Any, **rest: Any) -> Any:
            self.made += list(indices)
            return real(config, labels, indices, **rest)

        monkeypatch.setattr(generator, "latents_at_once", counted)


def plan_of(
    generator: LoadedGenerator, out: Path, *, count: int = 10, chunk: int = 4, **changes: Any
) -> SamplingPlan:
    config = changes.pop("config", CONFIG)
    made = make_plan(generator, config, equal_labels(range(3), count), out, **changes)
    return evolve(made, chunk_size=chunk)


def kinds(happened: Iterable[Any], kind: type) -> list[Any]:
    return [event for event in happened if isinstance(event, kind)]


def test_adms_layout(generator: LoadedGenerator, runtime: Runtime, tmp_path: Path) -> None:
    out = tmp_path / "new" / "samples.npz"
    plan = plan_of(generator, out)
    happened = list(make_samples(generator, plan, out, runtime=runtime, batch_size=3))
    assert kinds(happened, Started)[0].kept == 0
    assert [event.done for event in kinds(happened, Progressed)] == [3, 4, 7, 8, 10]
    assert kinds(happened, Finished)[0].out == out
    assert [path.name for path in out.parent.iterdir()] == ["samples.npz"]
    with np.load(out) as file:
        assert file.files == ["arr_0", "arr_1", "label_names"]
        assert file["label_names"].tolist() == ["cat", "dog", "ship"]
        pictures, labels = file["arr_0"], file["arr_1"]
    assert (pictures.dtype, pictures.shape) == (np.uint8, (10, SIDE, SIDE, 3))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    images = generator.sample(labels.tolist(), steps=2, guidance=1.5)
    wanted = (images * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(pictures - wanted).max() <= 1  # rounding, of a value that lies between two
    assert (pictures == wanted).mean() > 0.999


def test_pixels_are_rounded_or_truncated() -> None:
    image = torch.tensor([0.0, 0.5, 254.9 / 255, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_bytes(image)[0, :, :, 0].flatten().tolist() == [0, 128, 255, 255]
    assert to_bytes(image, truncate=True)[0, :, :, 0].flatten().tolist() == [0, 127, 254, 255]


def test_a_folder_of_pictures(generator: LoadedGenerator, runtime: Runtime, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    out.mkdir()  # an empty folder is none
    list(make_samples(generator, plan_of(generator, out, count=5), out, runtime=runtime))
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "00000-cat.png", "00001-dog.png", "00002-ship.png", "00003-cat.png", "00004-dog.png",
        "samples.json",
    ]  # fmt: skip
    with Image.open(out / names[1]) as picture:
        assert picture.size == (SIDE, SIDE)
    assert outputs.class_ending(1, ("a/b", "cat")) == "-cat"
    assert "/" not in outputs.class_ending(0, ("a/b",))
    assert [outputs.class_ending(label, ()) for label in (7, -1)] == ["-7", ""]


def test_latents(generator: LoadedGenerator, runtime: Runtime, tmp_path: Path) -> None:
    out = tmp_path / "latents.safetensors"
    list(make_samples(generator, plan_of(generator, out), out, runtime=runtime))
    found = load_file(out)
    assert found["labels"].tolist() == list(equal_labels(range(3), 10))
    wanted = generator.sample_latents(found["labels"], steps=2, guidance=1.5)
    torch.testing.assert_close(found["latents"], wanted, atol=1e-5, rtol=0)


def test_a_sheet_with_unguided_samples_beside_guided_ones(
    generator: LoadedGenerator, runtime: Runtime, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    plan = plan_of(
        generator, out, columns=4, compare=True, config=SamplingConfig(steps=2, guidance=9)
    )
    list(make_samples(generator, plan, out, runtime=runtime))
    block = 4 * (SIDE + GAP) - GAP
    with Image.open(out) as picture:
        assert picture.size == (2 * block + WIDE_GAP, 3 * (SIDE + GAP) - GAP)
        pixels = np.asarray(picture)
    plain = generator.sample(list(equal_labels(range(3), 10)), steps=2)
    left, top = SIDE + GAP, SIDE + GAP  # the sample of the second row and column, number 5
    unguided = pixels[top : top + SIDE, left : left + SIDE]
    assert np.abs(unguided.astype(int) - to_bytes(plain)[5].numpy()).max() <= 1
    guided = pixels[top : top + SIDE, left + block + WIDE_GAP :][:, :SIDE]
    assert np.abs(unguided.astype(int) - guided).max() > 5
    # A sheet is replaced by another one; a picture of somebody else is not.
    list(make_samples(generator, plan, out, runtime=runtime))
    Image.new("RGB", (4, 4)).save(out)
    with pytest.raises(UsageError, match="is there already: name another --out"):
        check_output(plan, out)


def test_stopped_and_gone_on_with_repeats_nothing(
    generator: LoadedGenerator,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    list(make_samples(generator, plan_of(generator, whole), whole, runtime=runtime))
    counting = Counting(generator, monkeypatch)
    stopped = make_samples(generator, plan_of(generator, out), out, runtime=runtime, batch_size=4)
    for event in stopped:
        if isinstance(event, Progressed) and event.done == 8:
            break  # before the second file of work is written
    stopped.close()
    assert not out.exists()
    assert counting.made == list(range(8))
    (work_folder(out) / "samples-00001-of-00003.safetensors.part").write_bytes(b"cut off")
    counting.made.clear()
    # Whatever the batch size now, files of work stay as large as they were.
    plan = plan_of(generator, out, chunk=64)
    happened = list(make_samples(generator, plan, out, runtime=runtime, batch_size=4))
    assert kinds(happened, Started)[0].kept == 4
    assert counting.made == list(range(4, 10))
    assert out.read_bytes() == whole.read_bytes()
    assert not work_folder(out).exists()


def test_killed_while_the_output_is_written(
    generator: LoadedGenerator,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.npz"

    def go_on(**changes: Any) -> list[Any]:
        plan = plan_of(generator, out, **changes)
        return list(make_samples(generator, plan, out, runtime=runtime))

    with monkeypatch.context() as patched:
        patched.setattr(job, "replace_durably", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            go_on()
    assert not out.exists()
    counting = Counting(generator, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(job.shutil, "rmtree", lambda *_, **__: None)  # killed before it
        go_on()
    assert out.exists()
    assert work_folder(out).exists()
    written = out.stat().st_mtime_ns
    assert kinds(go_on(), Finished)
    assert counting.made == []
    assert out.stat().st_mtime_ns == written
    assert not work_folder(out).exists()
    with pytest.raises(UsageError, match="is there already"):
        go_on()


def test_damaged_work_is_made_anew(
    generator: LoadedGenerator,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.npz"
    plan = plan_of(generator, out)
    with monkeypatch.context() as patched:
        patched.setattr(job, "write_output", no_space)
        with pytest.raises(RunError, match=r"cannot write .*out.npz: No space left"):
            list(make_samples(generator, plan, out, runtime=runtime))
    path = work_folder(out) / "samples-00001-of-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (work_folder(out) / "samples-00002-of-00003.safetensors").write_bytes(b"{")
    counting = Counting(generator, monkeypatch)
    happened = list(make_samples(generator, plan, out, runtime=runtime))
    told = [event.text for event in kinds(happened, Notice)]
    assert [text.endswith("; its samples are made anew") for text in told] == [True, True]
    assert "damaged or holds other samples" in told[0]
    assert counting.made == list(range(4, 10))
    assert out.exists()


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_nothing(
    generator: LoadedGenerator,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.npz"
    plan = plan_of(generator, out)
    real, written = chunks.save_file, []

    def filling(tensors: Any, path: Any, **rest: Any) -> None:
        real(tensors, path, **rest)
        written.append(path)
        if len(written) == 2:
            no_space()

    with monkeypatch.context() as patched:
        patched.setattr(chunks, "save_file", filling)
        with pytest.raises(RunError, match="free some space and call again to go on"):
            list(make_samples(generator, plan, out, runtime=runtime))
    assert sorted(p.name for p in work_folder(out).glob("samples*")) == [
        "samples-00000-of-00003.safetensors"
    ]
    counting = Counting(generator, monkeypatch)
    list(make_samples(generator, plan, out, runtime=runtime))
    assert counting.made == list(range(4, 10))


def test_other_settings_do_not_go_on(
    generator: LoadedGenerator, runtime: Runtime, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    stopped = make_samples(generator, plan_of(generator, out), out, runtime=runtime)
    next(stopped)
    stopped.close()
    other = LoadedGenerator(
        model=toy_generator(generator.tokenizer, seed=1), tokenizer=generator.tokenizer
    )
    changed = SamplingConfig(steps=3, guidance=1.5, interval=(0.1, 1.0))
    for plan, told in (
        (plan_of(generator, out, config=changed), ["steps is 2 there and 3 here", "interval is"]),
        (plan_of(generator, out, seed=1), ["seed is 0 there and 1 here"]),
        (plan_of(generator, out, count=11), ["count is 10 there and 11 here", "labels is"]),
        (plan_of(other, out), ["generator is"]),
        (plan_of(generator, out, truncate=True), ["truncate is false there and true here"]),
    ):
        with pytest.raises(UsageError, match="holds the beginning of other samples") as caught:
            check_output(plan, out)
        assert all(text in str(caught.value) for text in told)
        assert str(caught.value).count(" there and ") == len(told)


def test_work_folders_of_something_else(generator: LoadedGenerator, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    plan = plan_of(generator, out)
    work = work_folder(out)
    work.mkdir()
    check_output(plan, out)  # an empty one is none
    (work / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"other things than samples, such as thesis\.tex"):
        check_output(plan, out)
    for text in (
        "[]",
        '{"format": 1}',
        json.dumps({"format": 1, "settings": {}, "chunk_size": "x"}),
    ):
        (work / "index.json").write_text(text)
        with pytest.raises(CheckpointError, match="is damaged: remove"):
            check_output(plan, out)
    index = {"format": 2, "settings": {}, "chunk_size": 4, "output_sha256": ""}
    (work / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="of another rpiae"):
        check_output(plan, out)
    (tmp_path / "file.unfinished").write_text("")
    with pytest.raises(UsageError, match=r"file\.unfinished is a file"):
        check_output(plan_of(generator, tmp_path / "file"), tmp_path / "file")


def test_outputs_that_are_there(generator: LoadedGenerator, tmp_path: Path) -> None:
    for name in ("a.npz", "a.safetensors", "a.png"):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(UsageError, match="is there already"):
            check_output(plan_of(generator, tmp_path / name), tmp_path / name)
    full = tmp_path / "full"
    (full / "x").mkdir(parents=True)
    with pytest.raises(UsageError, match="is there already"):
        check_output(plan_of(generator, full), full)
    with pytest.raises(UsageError, match="is no preview"):
        check_output(plan_of(generator, tmp_path / "b"), tmp_path / "b", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("x.jpg", {}, "but no .jpg"),
        ("x.npz", {"compare": True}, "are compared in a sheet"),
        ("x.png", {"compare": True, "config": SamplingConfig()}, "nothing to compare"),
        ("x.png", {"count": 5000}, "a sheet is of 4096 samples at most"),
        ("x.safetensors", {"truncate": True}, "latents are not rounded"),
    ],
)
def test_what_does_not_fit_together(
    generator: LoadedGenerator, tmp_path: Path, name: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        plan_of(generator, tmp_path / name, **changes)


@pytest.mark.parametrize("name", ["out.npz", "out.safetensors"])
def test_a_preview_of_the_newest_samples(
    generator: LoadedGenerator, runtime: Runtime, tmp_path: Path, name: str
) -> None:
    out, preview = tmp_path / name, tmp_path / "shown" / "preview.png"
    sizes = []
    for event in make_samples(
        generator, plan_of(generator, out), out, runtime=runtime, batch_size=2, preview=preview
    ):
        if isinstance(event, Progressed):
            with Image.open(preview) as picture:
                sizes.append(picture.size)
    step = SIDE + GAP
    row = 8 * step - GAP
    assert sizes == [
        (2 * step - GAP, SIDE), (4 * step - GAP, SIDE), (6 * step - GAP, SIDE), (row, SIDE),
        (row, 2 * step - GAP),
    ]  # fmt: skip


def test_a_preview_that_cannot_be_written(
    generator: LoadedGenerator, runtime: Runtime, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    (tmp_path / "file").write_text("")
    preview = tmp_path / "file" / "preview.png"
    with pytest.raises(
        RunError, match=r"cannot write .*preview\.png: .*; mend that and call again"
    ):
        list(
            make_samples(generator, plan_of(generator, out), out, runtime=runtime, preview=preview)
        )


def test_one_at_a_time(generator: LoadedGenerator, runtime: Runtime, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    first = make_samples(generator, plan_of(generator, out), out, runtime=runtime)
    next(first)
    with pytest.raises(UsageError, match="another rpiae sample is at work in"):
        next(make_samples(generator, plan_of(generator, out), out, runtime=runtime))
    first.close()


def chunks_there(out: Path) -> int:
    return len(list(work_folder(out).glob("samples-*.safetensors")))


@pytest.mark.parametrize("name", ["pictures", "out.npz", "out.safetensors"])
def test_what_appears_at_the_output_is_not_replaced(
    generator: LoadedGenerator,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    out = tmp_path / name
    plan = plan_of(generator, out)
    mine = out / "mine.txt" if name == "pictures" else out
    happened = make_samples(generator, plan, out, runtime=runtime)
    next(happened)
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(RunError, match=r"appeared while samples were made.*move it away and call"):
        list(happened)
    for _ in range(2):  # nor is it taken for what was made
        with pytest.raises(UsageError, match="is there already"):
            list(make_samples(generator, plan, out, runtime=runtime))
        assert mine.read_text() == "mine"
        assert chunks_there(out) == 3
    mine.unlink()
    counting = Counting(generator, monkeypatch)
    assert kinds(make_samples(generator, plan, out, runtime=runtime), Finished)
    assert counting.made == []
    assert out.exists()
    assert not work_folder(out).exists()


@pytest.mark.parametrize("killed", [False, True])
def test_an_old_sheet_is_not_taken_for_the_new_one(
    generator: LoadedGenerator,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    out = tmp_path / "sheet.png"
    list(make_samples(generator, plan_of(generator, out), out, runtime=runtime))
    old, plan = out.read_bytes(), plan_of(generator, out, seed=1)

    def failing(*_: Any) -> None:
        raise SystemExit if killed else OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(job, "replace_durably", failing)
        with pytest.raises(SystemExit if killed else RunError):
            list(make_samples(generator, plan, out, runtime=runtime))
    assert out.read_bytes() == old
    assert chunks_there(out) == 3
    assert kinds(make_samples(generator, plan, out, runtime=runtime), Finished)
    assert out.read_bytes() != old
    assert not work_folder(out).exists()


def test_killed_before_the_rename_what_appears_then_is_not_replaced(
    generator: LoadedGenerator,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.npz"
    plan = plan_of(generator, out)
    with monkeypatch.context() as patched:
        patched.setattr(job, "replace_durably", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            list(make_samples(generator, plan, out, runtime=runtime))
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already"):
        list(make_samples(generator, plan, out, runtime=runtime))
    assert out.read_bytes() == b"mine"


def test_samples_without_a_class_have_no_label(
    generator: LoadedGenerator, runtime: Runtime, tmp_path: Path
) -> None:
    for name in ("out.npz", "out.safetensors", "pictures"):
        out = tmp_path / name
        plan = evolve(plan_of(generator, out, count=3), labels=(3, 1, 3))
        list(make_samples(generator, plan, out, runtime=runtime))
    with np.load(tmp_path / "out.npz") as file:
        assert file["arr_1"].tolist() == [-1, 1, -1]
    assert load_file(tmp_path / "out.safetensors")["labels"].tolist() == [-1, 1, -1]
    names = sorted(path.name for path in (tmp_path / "pictures").glob("*.png"))
    assert names == ["00000.png", "00001-dog.png", "00002.png"]
    read = (SampleFile(tmp_path / "out.npz"), SampleFolder(tmp_path / "pictures"))
    for samples in read:
        assert samples.label_names == ("cat", "dog", "ship")
        assert samples.labelled
        (loaded,) = samples.load([[0, 1, 2]])
        assert loaded.labels.tolist() == [-1, 1, -1]
    # Where no sample has a class, there are no labels.
    for name in ("none.npz", "none"):
        out = tmp_path / name
        plan = evolve(
            plan_of(generator, out, count=3, config=SamplingConfig(steps=2)), labels=(3, 3, 3)
        )
        list(make_samples(generator, plan, out, runtime=runtime))
    assert not SampleFile(tmp_path / "none.npz").labelled
    assert not SampleFolder(tmp_path / "none").labelled


def test_any_name_of_a_class_is_read_back(runtime: Runtime, tmp_path: Path) -> None:
    names = ("tench, Tinca tinca", "Ærø/ä", "1")
    tokenizer = toy_tokenizer()
    generator = LoadedGenerator(model=toy_generator(tokenizer, names=names), tokenizer=tokenizer)
    for name in ("pictures", "out.npz"):
        out = tmp_path / name
        list(make_samples(generator, plan_of(generator, out, count=4), out, runtime=runtime))
    for samples in (SampleFolder(tmp_path / "pictures"), SampleFile(tmp_path / "out.npz")):
        assert samples.label_names == names
        (loaded,) = samples.load([[0, 1, 2, 3]])
        assert loaded.labels.tolist() == [0, 1, 2, 0]
    (tmp_path / "pictures" / "00001.png").write_bytes(
        next((tmp_path / "pictures").glob("00000-*.png")).read_bytes()
    )
    more = SampleFolder(tmp_path / "pictures")
    assert more.notices == (f"{tmp_path / 'pictures'}: 1 of 5 samples have no label",)
    index = tmp_path / "pictures" / "samples.json"
    for text, told in (
        ("{", "is not a JSON file"), ("[]", "is no index of samples"),
        ('{"format": 1, "label_names": ["a"], "labels": {"x.png": 1}}', "labels that are none"),
    ):  # fmt: skip
        index.write_text(text)
        with pytest.raises(DataError, match=f"{told}.*sample anew, or remove it"):
            SampleFolder(tmp_path / "pictures")

"""A saved tokenizer is the old one or the new one, whatever happens while it is replaced."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.build import build
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.saved import open_model, write_model
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import plain_name
from tests.toys import DECODERS, ENCODERS

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}
DONE, REFUSED, KILLED = 0, 3, 9


def model(bridge: str) -> RPiAE:
    torch.manual_seed(0)
    return build(encoder=ENCODERS["vit"], bridge=bridge, decoder=DECODERS["vit"])


def cut_off(action: Callable[[], object], folder: Path, number: int, how: str) -> int:
    """Do something in a process of its own that is killed, or whose disk is full, at the n-th thing
    that it does to a folder or anything in it; how that ended."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in EVENTS or str(folder.parent) not in str(arguments[0]):
            return
        left -= 1
        if left == 0 and how == "killed":
            os._exit(KILLED)
        if left <= 0 and how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)
    try:
        action()
    except CheckpointError:
        os._exit(REFUSED)
    os._exit(DONE)


def same(one: RPiAE, other: RPiAE) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(t, right[n]) for n, t in left.items())


@pytest.mark.parametrize("how", ["killed", "full"])
def test_replacing_a_tokenizer_loses_nothing_at_any_step(tmp_path: Path, how: str) -> None:
    old, new = model("vb4"), model("vb8")
    found = {"old": 0, "new": 0}
    number, code = 0, KILLED
    while code != DONE:
        number += 1
        folder = tmp_path / str(number) / "tokenizer"
        save_tokenizer(old, folder)
        code = cut_off(lambda folder=folder: save_tokenizer(new, folder), folder, number, how)
        loaded = load_tokenizer(folder)
        kept = "new" if same(loaded, new) else "old"
        assert kept == "new" or same(loaded, old)
        found[kept] += 1
        # What was cut off does not stand in the way of another try, which may be cut off too.
        cut_off(lambda folder=folder: save_tokenizer(old, folder), folder, 4, how)
        loaded = load_tokenizer(folder)
        assert same(loaded, old) or same(loaded, new)
        save_tokenizer(old, folder)
        assert same(load_tokenizer(folder), old)
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
        assert [p.name for p in folder.parent.iterdir()] == ["tokenizer"]
    assert found["old"] >= 5
    assert found["new"] >= 2


@pytest.mark.parametrize("how", ["killed", "full"])
def test_a_first_save_is_there_whole_or_not_at_all(tmp_path: Path, how: str) -> None:
    made = model("vb4")
    number, code = 0, KILLED
    while code != DONE:
        number += 1
        folder = tmp_path / str(number) / "tokenizer"
        code = cut_off(lambda folder=folder: save_tokenizer(made, folder), folder, number, how)
        if (folder / "config.json").exists():
            assert same(load_tokenizer(folder), made)
        else:
            assert code != DONE
            with pytest.raises(CheckpointError, match=r"no finished tokenizer yet|does not exist"):
                load_tokenizer(folder)
        save_tokenizer(made, folder)
        assert same(load_tokenizer(folder), made)


def test_results_about_the_old_tokenizer_and_what_killed_runs_left_are_removed(
    tmp_path: Path,
) -> None:
    folder = save_tokenizer(model("vb4"), tmp_path / "tok")
    (folder / "evaluation.json").write_text("{}")
    (folder / "pictures").mkdir()
    for name in (".tok-abcd1234", ".tok-abcd1234-replaced", ".tok-notes", ".tok-mine_wxyz"):
        (tmp_path / name).mkdir()
    (tmp_path / ".tok-mine_wxyz" / "thesis.tex").write_text("years")
    save_tokenizer(model("vb4"), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tok-mine_wxyz", ".tok-notes", "tok"]


NAMES = [
    "../x",
    "a/b",
    "/etc/x",
    "..",
    ".",
    "",
    ".hidden",
    "a\0b",
    "é",
    "x" * 300,
    "[/red]",
    "\udcff",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_leads_nowhere(name: str, tmp_path: Path) -> None:
    made = plain_name(name)
    path = tmp_path / made
    assert path.parent == tmp_path
    path.mkdir()
    assert not made.startswith(".")
    assert made.isascii()


def test_names_stay_apart_and_plain_ones_stay_as_they_are() -> None:
    assert len({plain_name(name) for name in [*NAMES, "a-b", "a.b", "-"]}) == len(NAMES) + 3
    for name in ("tune", "stage_2", "photo.jpg", "A-1"):
        assert plain_name(name) == name


@pytest.mark.parametrize(
    "state", ["whole", "edited", "torn", "foreign", "cut off", "weights alone"]
)
@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_a_model_of_another_kind_is_left_alone(tmp_path: Path, kind: str, state: str) -> None:
    folder, weights = tmp_path / "model", {"w": torch.zeros(2)}
    trees = {"tokenizer": {"format": 1}, "generator": {"format": 1, "kind": "generator"}}
    tree, other = trees.pop(kind), next(iter(trees.values()))
    write_model(folder, tree, weights)
    config = folder / "config.json"
    if state == "edited":
        config.write_text(config.read_text().replace('"format": 1', '"format": 2'))
    elif state == "torn":
        config.write_bytes(config.read_bytes()[:-20])
    elif state == "foreign":
        config.write_text('{"model_type": "bert"}')
    elif state == "cut off":
        config.rename(folder / "config.json.part")
    elif state == "weights alone":
        config.unlink()
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"is left alone: name a new folder"):
        write_model(folder, other, {"w": torch.ones(2)})
    assert (folder / "model.safetensors").read_bytes() == before
    if state in ("whole", "cut off"):
        write_model(folder, tree, {"w": torch.ones(2)})
        assert open_model(folder, kind).read()["w"].tolist() == [1, 1]


def test_damaged_weights_can_be_replaced(tmp_path: Path) -> None:
    write_model(tmp_path, {"format": 1}, {"w": torch.zeros(2)})
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    write_model(tmp_path, {"format": 1}, {"w": torch.ones(2)})
    assert open_model(tmp_path).read()["w"].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_may_be_rounded_to_be_written(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = model("vb4")
    whole.register_buffer("latent_mean", torch.tensor([1 / 3, 0.0, 1.0, 2.0]))
    whole.register_buffer("latent_std", torch.full((4,), 1 / 3))
    exact, narrow = (
        save_tokenizer(whole, tmp_path / "exact"),
        save_tokenizer(whole, tmp_path / "narrow", rounded_to=dtype),
    )
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (exact, narrow)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_tokenizer(narrow)
    parameters = dict(whole.named_parameters())
    for name, tensor in loaded.state_dict().items():
        true = whole.state_dict()[name]
        assert tensor.dtype == true.dtype
        assert torch.equal(tensor, true.to(dtype).float() if name in parameters else true)
    assert same(load_tokenizer(save_tokenizer(loaded, tmp_path / "again")), loaded)


def test_values_that_a_narrow_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    large = model("vb4")
    with torch.no_grad():
        next(large.decoder.parameters()).fill_(1e5)
    with pytest.raises(UsageError, match=r"1e\+05, more than float16 can hold"):
        save_tokenizer(large, tmp_path / "narrow", rounded_to=torch.float16)
    assert not (tmp_path / "narrow").exists()
    save_tokenizer(large, tmp_path / "narrow", rounded_to=torch.bfloat16)

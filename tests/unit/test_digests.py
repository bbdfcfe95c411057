"""What is saved is what is loaded, or it is refused by name."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rpiae.core.errors import CheckpointError
from rpiae.core.model.build import build
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
    write_state,
)
from rpiae.tasks.tokenizer.pivot import inherit_pivot, read_pivot, write_pivot
from tests.toys import DECODERS, ENCODERS

PLACES = 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"])
    return save_tokenizer(model, tmp_path_factory.mktemp("saved") / "tokenizer")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tokenizer"))


def flipped(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def places(size: int) -> list[tuple[int, int]]:
    draws = random.Random(0)
    ends = [(0, 0), (size - 1, 3), (size - 30, 1)]
    return ends + [(draws.randrange(size), draws.randrange(8)) for _ in range(PLACES)]


def without_digests(folder: Path) -> dict[str, Any]:
    """A saved tokenizer as earlier versions wrote it, to be changed; its config."""
    tree = json.loads((folder / "config.json").read_text())
    del tree["sha256"], tree["weights_sha256"]
    (folder / "config.json").write_text(json.dumps(tree))
    return tree


def test_every_flipped_byte_of_a_tokenizers_weights_is_found(copy: Path) -> None:
    path = copy / "model.safetensors"
    for place, bit in places(path.stat().st_size):
        flipped(path, place, bit)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            load_tokenizer(copy)
        flipped(path, place, bit)
    load_tokenizer(copy)


def test_every_flipped_byte_of_a_tokenizers_config_is_found(copy: Path) -> None:
    path = copy / "config.json"
    tree = json.loads(path.read_text())
    for place, bit in places(path.stat().st_size):
        flipped(path, place, bit)
        try:
            same = json.loads(path.read_bytes()) == tree  # white space between values
        except ValueError:
            same = False
        if not same:
            with pytest.raises(CheckpointError, match="tokenizer"):
                load_tokenizer(copy)
        flipped(path, place, bit)


def test_every_flipped_byte_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    path = tmp_path / "stage0-step00000001.pt"
    write_state(path, {"model": {f"w{i}": torch.randn(7, i) for i in range(9)}, "step": 1})
    assert read_state(path).notices == ()
    for place, bit in places(path.stat().st_size):
        flipped(path, place, bit)
        with pytest.raises(CheckpointError, match=r"stage0-step00000001\.pt"):
            read_state(path)
        flipped(path, place, bit)
    for length in (0, 1, 21, 76, path.stat().st_size - 77, path.stat().st_size - 1):
        short = tmp_path / "short.pt"
        short.write_bytes(path.read_bytes()[:length])
        with pytest.raises(CheckpointError, match=r"short\.pt"):
            read_state(short)


def test_every_flipped_byte_of_a_pivot_is_found(tmp_path: Path) -> None:
    encoder = build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"])
    assert encoder.config is not None
    write_pivot(tmp_path, encoder.roles["encoder"])
    path = tmp_path / "pivot.safetensors"
    for place, bit in places(path.stat().st_size):
        flipped(path, place, bit)
        with pytest.raises(CheckpointError, match=r"pivot\.safetensors"):
            read_pivot(tmp_path, encoder.config.encoder)
        (tmp_path / "new").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=r"pivot\.safetensors"):
            inherit_pivot(tmp_path / "new", tmp_path)
        flipped(path, place, bit)
    assert inherit_pivot(tmp_path / "new", tmp_path)
    read_pivot(tmp_path / "new", encoder.config.encoder)


def test_torch_reads_a_checkpoint_and_files_without_a_digest_are_told_of(tmp_path: Path) -> None:
    path = tmp_path / "stage0-step00000001.pt"
    write_state(path, {"step": 1, "w": torch.arange(5)})
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["w"], torch.arange(5))
    torch.save(state, path)
    (notice,) = read_state(path).notices
    assert "has no digest" in notice


def test_a_tokenizer_without_digests_loads_and_is_told_of(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_digests(copy)
    load_tokenizer(copy)
    assert "has no digests to check it by" in caplog.text
    tree = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(tree | {"weights_sha256": "0"}))
    with pytest.raises(CheckpointError, match="damaged or was edited"):
        load_tokenizer(copy)


def test_a_checkpoint_that_cannot_be_used_makes_way_for_the_next_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / f"stage0-step0000000{step}.pt", {"step": step}, keep=3)
    (tmp_path / "stage0-step00000003.pt").write_bytes(b"hello")
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.state == {"step": 2}
    (notice,) = found.notices
    assert "stage0-step00000003.pt is damaged" in notice
    save_checkpoint(tmp_path / "stage0-step00000002.pt", {"step": 2, "again": True}, keep=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["stage0-step00000002.pt"]
    assert (tmp_path / "stage0-step00000003.pt.damaged").exists()


def config_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tree = without_digests(folder)
        change(tree)
        (folder / "config.json").write_text(json.dumps(tree))

    return apply


def tensors_with(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        without_digests(folder)
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return apply


def content(text: str | bytes) -> Callable[[Path], None]:
    raw = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "config.json").write_bytes(raw) and None


def fifo(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


WEIGHT = "decoder.blocks.0.attn.qkv.weight"
ones = torch.ones

DAMAGE: dict[str, Callable[[Path], None]] = {
    "width 0": config_with(lambda t: t["decoder"].update(width=0)),
    "huge width": config_with(lambda t: t["decoder"].update(width=16384, num_heads=1)),
    "negative": config_with(lambda t: t["encoder"].update(width=-32)),
    "text for number": config_with(lambda t: t["encoder"].update(width="32")),
    "list for table": config_with(lambda t: t.update(encoder=[t["encoder"]])),
    "text for table": config_with(lambda t: t.update(bridge="vb4")),
    "null": config_with(lambda t: t.update(decoder=None)),
    "number for a name": config_with(lambda t: t["decoder"].update(name=3)),
    "table for list": config_with(lambda t: t["encoder"].update(mean={"a": 1})),
    "unknown field": config_with(lambda t: t["encoder"].update(colour=1)),
    "unknown part": config_with(lambda t: t["bridge"].update(name="nobody's")),
    "no part": config_with(lambda t: t.pop("bridge")),
    "versions": config_with(lambda t: t.update(versions=[1])),
    "sources": config_with(lambda t: t.update(sources={"encoder": 1})),
    "format": config_with(lambda t: t.update(format=[1])),
    "trained size": config_with(lambda t: t.update(trained_size="256")),
    "negative size": config_with(lambda t: t.update(trained_size=-1)),
    "true size": config_with(lambda t: t.update(trained_size=True)),
    "huge size": config_with(lambda t: t.update(trained_size=10**30)),
    "deep": content("[" * 100_000),
    "deep table": content('{"a":' * 5_000 + "1" + "}" * 5_000),
    "digits": content('{"format": ' + "9" * 5_000 + "}"),
    "null byte": content(b'{"format": 1\0}'),
    "not UTF-8": content(b'{"format": "\xff"}'),
    "empty": content(""),
    "a list": content("[]"),
    "FIFO config": fifo("config.json"),
    "FIFO weights": fifo("model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "int8": tensors_with(lambda s: s.update({WEIGHT: s[WEIGHT].to(torch.int8)})),
    "bool": tensors_with(lambda s: s.update({WEIGHT: s[WEIGHT] > 0})),
    "one bf16": tensors_with(lambda s: s.update({WEIGHT: s[WEIGHT].bfloat16()})),
    "another shape": tensors_with(lambda s: s.update({WEIGHT: s[WEIGHT][:1].clone()})),
    "missing": tensors_with(lambda s: s.pop(WEIGHT)),
    "extra": tensors_with(lambda s: s.update(more=ones(1))),
    "norm of others": tensors_with(lambda s: s.update(latent_mean=ones(5), latent_std=ones(5))),
    "half a norm": tensors_with(lambda s: s.update(latent_mean=ones(4))),
    "flat norm": tensors_with(lambda s: s.update(latent_mean=ones(4), latent_std=ones(4, 1))),
    "std 0": tensors_with(lambda s: s.update(latent_mean=ones(4), latent_std=0 * ones(4))),
    "std nan": tensors_with(
        lambda s: s.update(latent_mean=ones(4), latent_std=ones(4) * float("nan"))
    ),
    "int norm": tensors_with(
        lambda s: s.update(latent_mean=ones(4).int(), latent_std=ones(4).int())
    ),
    "feature norm": tensors_with(
        lambda s: s.update(feature_mean=ones(31, 1, 1), feature_var=ones(31, 1, 1))
    ),
    "negative variance": tensors_with(
        lambda s: s.update(feature_mean=ones(32, 1, 1), feature_var=-ones(32, 1, 1))
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_tokenizer_is_refused_by_name(copy: Path, damage: Callable[[Path], None]) -> None:
    damage(copy)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(copy)
    assert str(copy) in str(caught.value)
    assert caught.value.exit_code == 1


def test_shapes_are_compared_before_anything_is_built(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    real = torch.nn.Linear.__init__

    def watched(self: torch.nn.Linear, *arguments: Any, **keywords: Any) -> None:
        real(self, *arguments, **keywords)
        devices.append(self.weight.device.type)

    DAMAGE["huge width"](copy)
    monkeypatch.setattr(torch.nn.Linear, "__init__", watched)
    with pytest.raises(CheckpointError, match=r"decoder\.\S+ is \(.*\) there and \(.*16384"):
        load_tokenizer(copy)
    assert set(devices) == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_that_was_saved_is_the_dtype_that_is_loaded(
    copy: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = load_tokenizer(copy)
    model.roles["decoder"].to(dtype)
    loaded = load_tokenizer(save_tokenizer(model, tmp_path / "other"))
    for name, tensor in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def test_norms_come_back(copy: Path, tmp_path: Path) -> None:
    model = load_tokenizer(copy)
    model.register_buffer("latent_mean", torch.arange(4.0))
    model.register_buffer("latent_std", torch.arange(1.0, 5.0))
    model.register_buffer("feature_mean", torch.zeros(32, 2, 2))
    model.register_buffer("feature_var", torch.ones(32, 2, 2))
    loaded = load_tokenizer(save_tokenizer(model, tmp_path / "other"))
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())

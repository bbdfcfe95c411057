"""Foreign weights: what kind a file is, which of its weights are taken, what it must not have."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import vision_transformer
from torch import Tensor, nn

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.errors import CheckpointError
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime.weights import load_whole, read_weights
from rpiae.losses.lpips import LpipsLoss
from tests.toys import ENCODERS

State = dict[str, Tensor]

SIGNATURES = (("embed.weight", "head.bias"),)


class Model(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return dict(Model().state_dict())


def read(path: Path, key: str = "") -> State:
    return read_weights(path, what="a model of two layers", signatures=SIGNATURES, key=key)


def same(one: State, other: State) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def torch_file(content: object, path: Path, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


# What a file is


@pytest.mark.parametrize("name", ["a.safetensors", "a.SAFETENSORS", "a.bin", "a.pth.tar", "a"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_a_file_is_known_by_its_content(kind: str, name: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch_file(state, path, zipped=kind == "zip")
    assert same(read(path), state)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_index_brings_its_shards(kind: str, state: State, tmp_path: Path) -> None:
    shards = [f"model-0000{number}-of-00002.{kind}" for number in (1, 2)]
    parts = [{n: v for n, v in state.items() if n.startswith(layer)} for layer in ("embed", "head")]
    for shard, part in zip(shards, parts, strict=True):
        save_file(part, tmp_path / shard) if kind == "safetensors" else torch.save(
            part, tmp_path / shard
        )
    where = {n: s for s, part in zip(shards, parts, strict=True) for n in part}
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert same(read(index), state)
    (tmp_path / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"index\.json.*there is no file .*{shards[1]}"):
        read(index)
    save_file({}, tmp_path / shards[1])
    with pytest.raises(CheckpointError, match=rf"head\.weight is not in {shards[1]}"):
        read(index)


@pytest.mark.parametrize("shard", ["../secret", "/etc/passwd", "a/b", "..", "", 5, None])
def test_an_index_names_files_beside_it_alone(shard: object, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embed.weight": shard}}))
    with pytest.raises(CheckpointError, match=r"index\.json.*shards lie beside the index"):
        read(index)


def test_an_index_that_names_itself_ends(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embed.weight": index.name}}))
    with pytest.raises(CheckpointError, match="neither a safetensors file"):
        read(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>sign in</html>", "it is a web page"),
        (b"\x1f\x8b\x08" + bytes(20), "it is compressed"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"GGUF" + bytes(20), "GGUF"),
        (b"{" * 100_000, "begins as JSON, and is none"),
        (b'{"weight_map": {}}', "no index of shards"),
        (b'{"a": 1}', "no index of shards"),
        (struct.pack("<Q", 2**62) + b"{}", "cut short, or its header is damaged"),
        (b"PK\x03\x04" + bytes(60), "not a zip file"),
        (pickle.dumps({"embed.weight": 1}), "neither a safetensors file"),
        (bytes(40), "neither a safetensors file"),
        (b"text", "neither a safetensors file"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_no_weights_file_is_told_by_name(
    content: bytes, message: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"given{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"given{suffix} cannot be read as weights.*{message}"
    ):
        read(path)


def test_other_archives_and_protocols_are_told(state: State, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weight=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"a\.npz.*a zip archive, as \.npz files are"):
        read(tmp_path / "a.npz")
    torch.save(state, tmp_path / "a.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r"a\.pth.*torch cannot read it.*its own protocol"):
        read(tmp_path / "a.pth")


def test_paths_that_are_no_files(tmp_path: Path, state: State) -> None:
    with pytest.raises(CheckpointError, match=r"there is no file .*none\.pth"):
        read(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"is a folder, not a weights file$"):
        read(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is a folder.*name a file in it, .*model\.safetensors"
    ):
        read(tmp_path)
    os.mkfifo(tmp_path / "fifo.pth")
    with pytest.raises(CheckpointError, match=r"fifo\.pth.*FIFO"):
        read(tmp_path / "fifo.pth")
    for name in ("nul\0byte.pth", "a" * 5_000, os.fsdecode(b"none\xe9.pth")):
        with pytest.raises(CheckpointError) as told:
            read(tmp_path / name)
        assert str(told.value).isprintable()


def test_names_that_are_no_utf_8_are_read(state: State, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.pth")
    for zipped in (True, False):
        torch_file(state, tmp_path / "a.pth", zipped=zipped).rename(path)
        assert same(read(path), state)


# Torch files


def test_options_and_numbers_beside_the_weights_are_harmless(state: State, tmp_path: Path) -> None:
    content = {
        "model": state, "args": argparse.Namespace(lr=0.1, out=Path("a/b")), "best": np.float64(3),
        "history": np.arange(3), "epoch": 3,
    }  # fmt: skip
    for zipped in (True, False):
        path = torch_file(content, tmp_path / f"{zipped}.pth", zipped=zipped)
        assert same(read(path), state)


class Bomb:
    """Would run code on loading."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_may_run_code_is_named_and_not_run(zipped: bool, state: State, tmp_path: Path) -> None:
    path = torch_file({**state, "hook": Bomb(tmp_path / "ran")}, tmp_path / "a.pth", zipped=zipped)
    with pytest.raises(
        CheckpointError, match=r"a\.pth.*not a plain weights file: it holds \w+, which may run"
    ):
        read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive_is_told(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match=r"a\.pt.*TorchScript archive"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_its_file_is_refused_unread(
    zipped: bool, state: State, tmp_path: Path
) -> None:
    huge = torch.zeros(1).expand(10**6, 10**6)
    path = torch_file({**state, "embed.weight": huge}, tmp_path / "a.pth", zipped=zipped)
    with pytest.raises(CheckpointError, match=r"a\.pth.*embed\.weight claims to be \(1000000,"):
        read(path)


def test_deep_tables_and_tables_within_themselves_end(state: State, tmp_path: Path) -> None:
    deep: dict[str, Any] = {"state_dict": state}
    for _ in range(200):
        deep = {"deeper": deep}
    assert same(read(torch_file(deep, tmp_path / "a.pth")), state)
    circle: dict[str, Any] = {"model": state}
    circle["again"] = circle
    assert same(read(torch_file(circle, tmp_path / "a.pth")), state)


def _damaged(random: Random, path: Path) -> None:
    """Write a file of one of the kinds, changed in some places or cut."""
    torch.manual_seed(0)
    state = dict(Model().state_dict())
    kind = random.choice(("safetensors", "zip", "pickle"))
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch_file({"model": state, "n": 3}, path, zipped=kind == "zip")
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 6)):
        place = random.randrange(len(content))
        change = random.choice(("byte", "byte", "bytes", "cut"))
        if change == "byte":
            content[place] = random.randrange(256)
        elif change == "bytes":
            content[place : place + 8] = random.randbytes(8)
        else:
            del content[place : place + random.randint(1, 30)]
    path.write_bytes(content)


@pytest.mark.parametrize("number", [200, pytest.param(5_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_by_name_or_read(number: int, tmp_path: Path) -> None:
    random = Random(0)
    path = tmp_path / "a.pth"
    for _ in range(number):
        _damaged(random, path)
        told = ""
        try:
            load_whole(Model(), read(path), source=path)
        except CheckpointError as error:
            told = str(error)
        assert not told or ("a.pth" in told and told.isprintable())


# Which weights


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "backbone.", "encoder.",
        "model.encoder.", "net.backbone._orig_mod.module.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrapped", [(), ("state_dict",), ("model",), ("checkpoint", "net")])
def test_weights_are_found_under_any_prefix(
    prefix: str, wrapped: tuple[str, ...], state: State, tmp_path: Path
) -> None:
    content: Any = under(prefix, state) | {"neighbour.weight": torch.zeros(1)}
    for name in wrapped:
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}}
    assert same(read(torch_file(content, tmp_path / "a.pth")), state)


WRAPPERS = (
    "_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
)  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize("wrapped", ["embed", "head", "both"])
def test_what_wrappers_put_into_names_is_passed_over(
    wrapper: str, prefix: str, wrapped: str, state: State, tmp_path: Path
) -> None:
    content = {
        n.replace(".", f".{wrapper}.") if wrapped in (n.partition(".")[0], "both") else n: value
        for n, value in state.items()
    }
    assert same(read(torch_file(under(prefix, content), tmp_path / "a.pth")), state)


def test_two_names_that_wrappers_alone_tell_apart_are_both_kept(
    state: State, tmp_path: Path
) -> None:
    content = state | {"head.module.bias": torch.ones(2)}
    assert same(read(torch_file(content, tmp_path / "a.pth")), content)


@pytest.mark.parametrize("place", ["ema", "model_ema", "ema_state"])
@pytest.mark.parametrize("name", ["shadow_params", "params"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_averages_without_names_are_told(
    place: str,
    name: str,
    kind: Callable[[Any], Any],
    state: State,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    averages = {"decay": 0.9, name: kind(state.values()), "collected_params": []}
    path = torch_file({"model": state, place: averages, "ema_steps": [1]}, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING, logger="rpiae"):
        assert same(read(path), state)
    (told,) = (record.getMessage() for record in caplog.records)
    assert "a.pth" in told
    assert f"under {place}.{name}: they have no names and cannot be taken" in told


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict", "state_dict_ema"), ("model", "ema"), ("model", "model_ema"),
        ("student", "teacher"), ("module", "ema_model"), ("net", "net_ema"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("nested", [True, False])
def test_of_raw_and_averaged_weights_the_choice_is_told_and_can_be_made(
    raw: str,
    averaged: str,
    order: int,
    nested: bool,
    state: State,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = {name: value + 1 for name, value in state.items()}
    places = [(raw, state), (averaged, other)][::order]
    content: Any = {name: under("module.", value) for name, value in places}
    if not nested:
        content = {f"{n}.{k}": v for n, table in content.items() for k, v in table.items()}
    path = torch_file(content, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING, logger="rpiae"):
        assert same(read(path), other)
    assert f"those under {averaged}.module are loaded, the averaged ones" in caplog.text
    assert f"{raw}.module" in caplog.text
    assert "weights_key" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="rpiae"):
        assert same(read(path, raw), state)
        assert same(read(path, f"{averaged}.module"), other)
    assert not caplog.text
    with pytest.raises(CheckpointError, match=rf"under 'nothing' \(weights_key\).*{raw}\.module"):
        read(path, "nothing")


def test_the_top_level_is_called_a_dot(state: State, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in state.items()}
    path = tmp_path / "a.safetensors"
    save_file({**state, **under("ema.", other)}, path)
    assert same(read(path), other)
    assert same(read(path, "."), state)


def test_a_file_of_something_else_says_what_it_has(tmp_path: Path) -> None:
    save_file({"visual.proj": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"another architecture than a model of two layers: embed\.weight is missing, under "
        r"any prefix\. It has visual\.proj",
    ):
        read(tmp_path / "a.safetensors")


# What is loaded


def test_everything_is_consumed_or_known(state: State) -> None:
    extra = {"norm.weight": torch.zeros(1), "blocks.0.bn.num_batches_tracked": torch.tensor(3)}
    load_whole(Model(), state | extra, source="f", unused=("norm.",))
    with pytest.raises(CheckpointError, match=r"f has norm\.weight, which this model has no place"):
        load_whole(Model(), state | extra, source="f")
    strange = {"layers.0.ls1.gamma": torch.zeros(1), "other": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"f has file\.gamma \(and 1 more\), which"):
        load_whole(
            Model(), state | strange, source="f", called={"layers.0.ls1.gamma": "file.gamma"}
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, state: State) -> None:
    state["head.weight"][1, 2] = value
    with pytest.raises(CheckpointError, match=r"f: head\.weight has values that are not finite"):
        load_whole(Model(), state, source="f")
    load_whole(nn.Linear(3, 4), {"weight": state["embed.weight"], "bias": state["embed.bias"],
               "unused": state["head.weight"]}, source="f", unused=("unused",))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.complex64])
def test_types_that_are_no_weights_are_refused(dtype: torch.dtype, state: State) -> None:
    state["head.weight"] = torch.zeros(2, 4).to(dtype)
    with pytest.raises(CheckpointError, match=r"head\.weight is of type \w+, expected float32"):
        load_whole(Model(), state, source="f")


STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda t: t.to(torch.float8_e5m2),
    "sparse": lambda t: t.to_sparse(),
    "rows": lambda t: t.to_sparse_csr(),
    "without values": lambda t: t.to("meta"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_what_is_no_plain_tensor_is_refused_by_name(
    strange: Callable[[Tensor], Tensor], state: State, tmp_path: Path
) -> None:
    state["head.weight"] = strange(state["head.weight"])
    with pytest.raises(CheckpointError, match=r"head\.weight is of type .*not a plain tensor"):
        load_whole(Model(), state, source="f")
    with pytest.raises(CheckpointError, match=r"a\.pth: x\.head\.weight is of type"):
        read(torch_file(under("x.", state), tmp_path / "a.pth"))


@pytest.mark.parametrize("name", ["vit", "open-clip", "timm", "timm-rotary"])
@pytest.mark.parametrize("strange", ["float8_e4m3fn", "sparse", "without values"])
@pytest.mark.parametrize("where", [0, -1])
def test_encoders_refuse_what_is_no_plain_tensor(
    name: str, strange: str, where: int, tmp_path: Path
) -> None:
    _, state = _encoder(name)
    own = [n for n, v in state.items() if v.is_floating_point()][where]
    path = torch_file(state | {own: STRANGE[strange](state[own])}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: {own} is of type"):
        _load(name, path)


def test_what_a_conversion_copies_is_not_taken_for_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = _encoder("timm")
    convert = vision_transformer.checkpoint_filter_fn

    def copying(found: State, *args: Any, **options: Any) -> State:
        bare = {n.replace(".theirs.", ".mlp."): v.clone() for n, v in found.items() if n != "more"}
        return convert(bare, *args, **options)

    monkeypatch.setattr(vision_transformer, "checkpoint_filter_fn", copying)
    foreign = {name.replace(".mlp.", ".theirs."): value for name, value in state.items()}
    loaded = _load("timm", torch_file(foreign, tmp_path / "a.pth"))
    assert same({n: loaded.state_dict()[f"network.{n}"] for n in state}, state)
    path = torch_file(foreign | {"more": torch.ones(2)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="has more, which this model has no place for"):
        _load("timm", path)


@pytest.mark.parametrize("head", ["classifier.weight", "fc.bias", "segmentation_head.0.weight"])
def test_heads_beside_a_vit_are_not_used(head: str, tmp_path: Path) -> None:
    _, state = _encoder("timm")
    loaded = _load("timm", torch_file(state | {head: torch.ones(2)}, tmp_path / "a.pth"))
    assert same({n: loaded.state_dict()[f"network.{n}"] for n in state}, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_taken_in_the_module_s_own(dtype: torch.dtype, state: State) -> None:
    model = Model()
    load_whole(model, {n: v.to(dtype) for n, v in state.items()}, source="f")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.allclose(model.head.weight, state["head.weight"], atol=0.01)


# Every encoder

Change = Callable[[State, Path], Path]


def _encoder(name: str) -> tuple[EncoderConfig, State]:
    config = part_config("encoders", ENCODERS[name])
    assert isinstance(config, EncoderConfig)
    torch.manual_seed(1)
    module = config.build()
    for prefix in ("tower.network.", "network.", ""):
        found = {
            n.removeprefix(prefix): v
            for n, v in module.state_dict().items()
            if n.startswith(prefix)
        }
        if found:
            return config, found
    raise AssertionError


def _load(name: str, path: Path, key: str = "") -> nn.Module:
    tree = {**ENCODERS[name], "weights": str(path), "weights_key": key, "pretrained": True}
    config = part_config("encoders", tree)
    assert isinstance(config, EncoderConfig)
    module: nn.Module = config.build()
    config.load_pretrained(module)
    return module


BLOCKS = {"vit": "transformer.", "open-clip": "transformer.resblocks.", "timm": "blocks."}


@pytest.mark.parametrize("name", ["vit", "open-clip", "open-clip-siglip", "timm", "timm-rotary"])
def test_encoders_refuse_what_they_would_ignore(name: str, tmp_path: Path) -> None:
    _, state = _encoder(name)
    block = BLOCKS.get(name, "blocks.")
    path = tmp_path / "a.safetensors"
    save_file(under("model.backbone.", state), path)
    assert all(
        torch.equal(value, state[next(n for n in state if key.endswith(n))])
        for key, value in _load(name, path).state_dict().items()
    )
    for strange, meaning in (
        (f"{block}0.ls3.gamma", "LayerScale"),
        (f"{block}1.attn.rel_pos_h", "relative positions"),
        (f"{block}3.norm1.weight", "more blocks than the model"),
        ("some_token", ""),
    ):
        save_file(state | {strange: torch.ones(2)}, path)
        with pytest.raises(CheckpointError) as told:
            _load(name, path)
        assert f"a.safetensors has {strange}, which this model has no place for" in str(told.value)
        assert meaning in str(told.value)
    broken = next(
        n for n, v in state.items() if n.startswith(f"{block}1.") and v.is_floating_point()
    )
    state[broken] = state[broken] * float("nan")
    save_file(state, path)
    with pytest.raises(CheckpointError, match=rf"{broken} has values that are not finite"):
        _load(name, path)


def test_blocks_behind_the_last_used_one_may_be_there(tmp_path: Path) -> None:
    _, state = _encoder("timm-layers")
    tree = {**ENCODERS["timm-layers"], "layers": [0], "weights": str(tmp_path / "a.safetensors")}
    save_file(state, tmp_path / "a.safetensors")
    config = part_config("encoders", tree)
    assert isinstance(config, EncoderConfig)
    module = config.build()
    config.load_pretrained(module)
    assert torch.equal(module.state_dict()["network.pos_embed"], state["pos_embed"])
    assert module.num_blocks == 1


def test_a_config_chooses_among_student_and_teacher(tmp_path: Path) -> None:
    _, state = _encoder("timm")
    other = {name: value + 1 for name, value in state.items()}
    path = torch_file(
        {"student": under("module.backbone.", state), "teacher": under("backbone.", other)},
        tmp_path / "dino.pth",
    )
    taken = _load("timm", path, "student").state_dict()["network.pos_embed"]
    assert torch.equal(taken, state["pos_embed"])
    taken = _load("timm", path).state_dict()["network.pos_embed"]
    assert torch.equal(taken, other["pos_embed"])


def test_transformers_layouts_are_checked_too(tmp_path: Path) -> None:
    from rpiae.core.model.adapters import encoder_to_reference

    _, state = _encoder("timm")
    foreign = encoder_to_reference(under("network.", state))
    path = tmp_path / "a.safetensors"
    save_file(under("dinov2.", foreign), path)
    loaded = _load("timm", path).state_dict()
    assert all(torch.equal(loaded[f"network.{n}"], v) for n, v in state.items())
    more = {
        n.replace("layer.0", "layer.3"): v.clone() for n, v in foreign.items() if "layer.0" in n
    }
    for changed, message in (
        (foreign | more, r"a\.safetensors has encoder\.layer\.3\.\S+ .*more blocks than the model"),
        (foreign | {"embeddings.strange": torch.ones(1)}, r"a\.safetensors: .*embeddings\.strange"),
        (
            foreign
            | {"encoder.layer.1.attention.attention.key.weight": torch.full((32, 32), torch.nan)},
            r"a\.safetensors: .*layer\.1\.attention\.attention\.key\.weight has values that are not",
        ),
    ):
        save_file({n: v.contiguous() for n, v in changed.items()}, path)
        with pytest.raises(CheckpointError, match=message):
            _load("timm", path)


def test_a_dinov3_bias_that_the_model_lacks_is_refused_unless_it_is_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, state = _encoder("timm-rotary")
    names = {"reg_token": "storage_tokens"}
    original = {names.get(n, n).replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): v
                for n, v in state.items()}  # fmt: skip
    original |= {
        "mask_token": torch.ones(1, 32), "norm.weight": torch.ones(32), "rope_embed.periods": torch.ones(4),
        "blocks.0.attn.qkv.bias": torch.zeros(96), "blocks.0.attn.qkv.bias_mask": torch.full((96,), torch.nan),
    }  # fmt: skip
    path = tmp_path / "dinov3.safetensors"
    save_file(original, path)
    loaded = _load("timm-rotary", path).state_dict()
    assert all(torch.equal(loaded[f"network.{n}"], v) for n, v in state.items())
    save_file(original | {"blocks.0.attn.qkv.bias": torch.ones(96)}, path)
    with pytest.raises(CheckpointError, match=r"has blocks\.0\.attn\.qkv\.bias, which .*a bias"):
        _load("timm-rotary", path)
    assert not capsys.readouterr().out


def test_lpips_refuses_a_larger_network_and_broken_numbers() -> None:
    named = {name: value.clone() for name, value in LpipsLoss().vgg.state_dict().items()}
    LpipsLoss(backbone=named | {"classifier.0.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"has features\.30\.weight, which this model has no"):
        LpipsLoss(backbone=named | {"features.30.weight": torch.zeros(2)})
    named["features.5.bias"][0] = torch.nan
    with pytest.raises(CheckpointError, match=r"features\.5\.bias has values that are not finite"):
        LpipsLoss(backbone=named)


def test_the_index_of_an_encoder_is_read(tmp_path: Path) -> None:
    _, state = _encoder("timm")
    save_file(state, tmp_path / "model-00001-of-00001.safetensors")
    where = dict.fromkeys(state, "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert torch.equal(_load("timm", index).state_dict()["network.pos_embed"], state["pos_embed"])
    assert load_file(tmp_path / "model-00001-of-00001.safetensors").keys() == state.keys()

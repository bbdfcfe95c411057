"""Files of the reference through the product's door, against what the reference gave for them.

Each golden is written to a file as its users have it and imported. The checks are so tight that one
weight tensor that is 1 % off, of any that counts, fails them, which is tried tensor by tensor. Biases of keys
alone do not count: softmax takes the same from every key.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import rpiae
from rpiae.bridges.posterior import DiagonalGaussian
from rpiae.core.model.adapters import (
    bridge_from_reference,
    decoder_from_reference,
    encoder_from_reference,
    from_transformers,
)
from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import Features
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.geometry import map_grid, map_to_tokens, tokens_to_map
from rpiae.core.model.tokenizer import RPiAE
from rpiae.interop.importing import import_model
from rpiae.interop.reference.facts import Told
from rpiae.interop.reference.tokenizers import write_reference
from tests.golden.conftest import Golden, Load
from tests.toys import DECODERS, ENCODERS

State = dict[str, Tensor]

WITH_BRIDGE = ("rpiae_bridge", "rpiae_bridge_norm")
TOKENIZERS = ("rpiae_stage1", *WITH_BRIDGE)
GRID = (16, 16)

#: Largest differences that pass. Measured: features 2.4e-6, bridge 1.5e-5 of values up to 15, images from
#: pixels 9e-7, velocities 5e-6; images from the reference's own features 6e-8 on average (root of squares).
FEATURES, BRIDGE, IMAGES, VELOCITIES = 1e-5, 1e-4, 2e-5, 3e-5
IMAGES_OF_FEATURES = 1.5e-7

#: Encoder goldens: config.json of the encoder, input and output of it.
ENCODER_CASES = {
    "encoder_dinov2": ("images", "tokens"),
    "encoder_mae": ("pixel_values_256", "patch_tokens_256"),
    "encoder_siglip": ("pixel_values_256", "patch_tokens_256"),
}

#: Generator goldens: file, section, what names of its tensors begin with, what shapes do not tell.
GENERATORS: dict[str, tuple[str, str, str, dict[str, int]]] = {
    "lightningdit": ("generator_lightningdit", "state", "", {}),
    "plain": ("generator_plain", "state", "", {"num_heads": 4}),
    "mixed": ("generator_plain", "state_mixed", "mixed_", {"num_classes": 5}),
    "woshift": ("generator_plain", "state_woshift", "woshift_", {}),
    "ddt": ("generator_ddt", "state", "", {}),
}


def bare(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def averaged(state: State, path: Path) -> Path:
    """What the reference's training writes, with averages beside raw weights."""
    raw = {name: value + 1 for name, value in state.items()}
    return bare({"model": raw, "ema": state, "epoch": 16}, path)  # type: ignore[dict-item]  # not all tensors


def wrapped(state: State, path: Path) -> Path:
    """Compiled within DDP, and the other way round."""
    raw = {f"module.{name}": value + 1 for name, value in state.items()}
    inner = {f"_orig_mod.module.{name}": value for name, value in state.items()}
    return bare({"ema": inner, "model": raw}, path)  # type: ignore[dict-item]


def inside(state: State, path: Path) -> Path:
    """Each part compiled by itself."""
    return bare({n.replace(".", "._orig_mod.", 1): value for n, value in state.items()}, path)


def with_options(state: State, path: Path) -> Path:
    """Options and numbers of a training script beside the weights."""
    beside: Any = {"args": argparse.Namespace(lr=2e-4), "loss": np.float64(0.25)}
    return bare({"state_dict": state, **beside}, path)


def safetensors(state: State, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


WRITTEN: tuple[Callable[[State, Path], Path], ...] = (
    bare, averaged, wrapped, inside, with_options, safetensors,
)  # fmt: skip


def told(known: Golden, folder: Path) -> Told:
    """What a user says of a golden, statistics in their file."""
    facts = {
        "num_heads": known.facts["encoder"]["num_attention_heads"],
        "decoder_heads": known.facts["decoder"]["decoder_num_attention_heads"],
    }
    if known.facts["normalization_stats"]:
        stats = folder / "stats.pt"
        torch.save({"mean": known.inputs["latent_mean"], "var": known.inputs["latent_var"]}, stats)
        return Told(**facts, stats=str(stats))
    return Told(**facts)


def imported(known: Golden, folder: Path, write: Callable[[State, Path], Path] = bare) -> RPiAE:
    found = import_model(write(known.state, folder / "weights"), told=told(known, folder))
    assert isinstance(found.model, RPiAE)
    return found.model


#: What was found, what the reference gave, and how far they may lie apart.
Check = tuple[Tensor, Tensor, float]


def encoder_checks(model: RPiAE, known: Golden) -> Iterator[Check]:
    tokens = model.features(known.inputs["images"]).tokens
    yield tokens, known.expected["encoder_tokens"], FEATURES


def bridge_checks(model: RPiAE, known: Golden) -> Iterator[Check]:
    """From the reference's features."""
    posterior = model.posterior(Features(known.expected["encoder_tokens"], (1, *GRID)))
    assert isinstance(posterior, DiagonalGaussian)
    for name in ("mean", "logvar"):
        found = getattr(posterior, name).squeeze(2)
        yield found, known.expected[f"posterior_{name}"], BRIDGE
    decoded = model.expand(as_clip(known.expected["posterior_mean"]))
    yield tokens_to_map(*decoded).squeeze(2), known.expected["vb_decoded_denorm"], BRIDGE


def decoder_checks(model: RPiAE, known: Golden) -> Iterator[Check]:
    """From the reference's features, in which an average shows what a largest difference hides."""
    name = "vb_decoded_denorm" if "vb_decoded_denorm" in known.expected else "latent"
    features = Features(known.expected[name].flatten(2).mT, (1, *GRID))
    found, wanted = model.decode_features(features, size=(256, 256)), known.expected
    yield _root_of_squares(found, wanted["reconstruction"]), torch.tensor(0.0), IMAGES_OF_FEATURES


def _root_of_squares(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).double().pow(2).mean().sqrt().float()


def passes(checks: Iterator[Check]) -> bool:
    return all((found - wanted).abs().max() <= most for found, wanted, most in checks)


@pytest.mark.parametrize("write", WRITTEN, ids=lambda write: write.__name__)
@torch.inference_mode()
def test_a_tokenizer_in_all_wrappings(
    golden: Load, tmp_path: Path, write: Callable[[State, Path], Path]
) -> None:
    known = golden("rpiae_bridge")
    model = imported(known, tmp_path, write)
    again = imported(known, tmp_path)
    images = known.inputs["images"][:1]
    assert torch.equal(model.reconstruct(images), again.reconstruct(images))
    assert passes(encoder_checks(model, known))


@pytest.mark.parametrize("name", TOKENIZERS)
@torch.inference_mode()
def test_a_tokenizer(golden: Load, tmp_path: Path, name: str) -> None:
    known = golden(name)
    model = imported(known, tmp_path)
    assert passes(encoder_checks(model, known))
    assert passes(decoder_checks(model, known))
    images, wanted = known.inputs["images"], known.expected
    posterior = model.encode(images)
    if name in WITH_BRIDGE:
        assert passes(bridge_checks(model, known))
        torch.testing.assert_close(posterior.mode(), wanted["latent_mode"], rtol=0, atol=BRIDGE)
    else:
        torch.testing.assert_close(posterior.mode(), wanted["latent"], rtol=0, atol=FEATURES)
    found = model.decode(posterior.mode(), size=(256, 256))
    torch.testing.assert_close(found, wanted["reconstruction"], rtol=0, atol=IMAGES)
    assert (model.feature_mean is not None) == known.facts["normalization_stats"]
    assert model.trained_size == 256


@pytest.mark.parametrize("name", TOKENIZERS)
@torch.inference_mode()
def test_a_weight_that_is_off_fails(golden: Load, tmp_path: Path, name: str) -> None:
    known = golden(name)
    model = imported(known, tmp_path)
    tried, unseen = 0, set()
    for role, (prefix, here, checks) in _ROLES.items():
        part = model.roles[role]
        own = {n: value for n, value in known.state.items() if n.startswith(prefix)}
        if not own:  # Stage I has no bridge
            continue
        right = here(own)
        for foreign in own:
            if foreign.endswith("mask_token"):
                continue
            part.load_state_dict(here({**own, foreign: own[foreign] * 1.01}))
            tried += 1
            if passes(checks(model, known)):
                unseen.add(foreign)
        part.load_state_dict(right)
        assert passes(checks(model, known))
    assert tried > 90
    assert unseen == {n for n in known.state if _counts_not(n) and not n.startswith("teacher_")}


def _counts_not(name: str) -> bool:
    return name.endswith((".key.bias", ".k_proj.bias"))


def _encoder_here(own: State) -> State:
    return encoder_from_reference({n.removeprefix("encoder.encoder."): v for n, v in own.items()})


#: Role → beginning of its names in a file, its key map, and its checks.
_ROLES: dict[str, tuple[str, Callable[[State], State], Callable[[RPiAE, Golden], Any]]] = {
    "encoder": ("encoder.encoder.", _encoder_here, encoder_checks),
    "bridge": ("vb_feature_", bridge_from_reference, bridge_checks),
    "decoder": ("decoder.", lambda own: decoder_from_reference(own, grid=GRID), decoder_checks),
}


def encoder_folder(known: Golden, folder: Path) -> Path:
    """An encoder golden as a folder of transformers."""
    facts = known.facts
    config = facts.get("hf_config") or facts.get("hf_vision_config")
    if config is None:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
        config = {name: facts[name] for name in names} | {"model_type": "dinov2_with_registers"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(known.state, folder / "model.safetensors")
    return folder


def decoder_file(golden: Load, folder: Path) -> Path:
    """A decoder alone, of features 64 wide, as RAE ships it."""
    state = golden("rpiae_stage1").state
    own = {n.removeprefix("decoder."): v for n, v in state.items() if n.startswith("decoder.")}
    return bare(own, folder / "decoder.pt")


@pytest.mark.parametrize("name", ENCODER_CASES)
@torch.inference_mode()
def test_an_encoder_of_transformers_with_a_decoder_of_rae(
    golden: Load, tmp_path: Path, name: str
) -> None:
    known = golden(name)
    folder = encoder_folder(known, tmp_path / "encoder")
    file = decoder_file(golden, tmp_path)
    model = import_model(file, told=Told(encoder=str(folder), decoder_heads=4)).model
    assert isinstance(model, RPiAE)
    given, wanted = (
        source[key]
        for source, key in zip((known.inputs, known.expected), ENCODER_CASES[name], strict=True)
    )
    if name == "encoder_dinov2":  # its input lies in [0, 1]
        given = (given - model.mean) / model.std

    def checks() -> Iterator[Check]:
        yield model.encoder(given).tokens, wanted, FEATURES

    assert passes(checks())
    here = from_transformers(known.state)
    assert here is not None
    part = model.roles["encoder"]
    unseen = set()
    for foreign in known.state:
        own = from_transformers({**known.state, foreign: known.state[foreign] * 1.01})
        assert own is not None
        part.load_state_dict(own)
        if passes(checks()):
            unseen.add(foreign)
    unused = ("layernorm.", "vit.layernorm.", "vision_model.post_layernorm.", "vision_model.head.")
    assert unseen == {
        n for n in known.state if _counts_not(n) or n.startswith(unused) or n.endswith("mask_token")
    }


@torch.inference_mode()
def test_a_bridge_of_two_heads(golden: Load, tmp_path: Path) -> None:
    known = golden("bridge_heads2")
    random = rpiae.build(
        encoder={**ENCODERS["timm"], "model_args": {"embed_dim": 128, "depth": 1, "num_heads": 2}},
        bridge="vb16", decoder=DECODERS["vit"], pretrained=False,
    )  # fmt: skip
    write_reference(random, tmp_path)
    file = tmp_path / "rpiae.pt"
    bare({**torch.load(file, weights_only=True), **known.state}, file)
    model = import_model(file).model
    assert isinstance(model, RPiAE)

    def checks() -> Iterator[Check]:
        given = known.inputs["z_map"]
        posterior = model.bridge.encode(Features(map_to_tokens(given), map_grid(given)))
        assert isinstance(posterior, DiagonalGaussian)
        yield posterior.mean.squeeze(2), known.expected["posterior_mean"], BRIDGE
        yield posterior.logvar.squeeze(2), known.expected["posterior_logvar"], BRIDGE
        decoded = model.bridge.decode(as_clip(known.expected["posterior_mean"]))
        yield tokens_to_map(*decoded).squeeze(2), known.expected["vb_decoded"], BRIDGE

    assert passes(checks())
    for name in known.state:
        own = bridge_from_reference({**known.state, name: known.state[name] * 1.01})
        model.roles["bridge"].load_state_dict(own)
        assert not passes(checks()), name


@pytest.mark.parametrize("name", GENERATORS)
@torch.inference_mode()
def test_a_generator(golden: Load, tmp_path: Path, name: str) -> None:
    file, section, prefix, facts = GENERATORS[name]
    known = golden(file)
    inputs = [known.inputs[f"{prefix}{which}"] for which in "xty"]
    tokenizer = rpiae.build(
        encoder=ENCODERS["vit"], bridge=f"vb{inputs[0].shape[1]}", decoder=DECODERS["vit"],
        pretrained=False,
    )  # fmt: skip
    folder = save_tokenizer(tokenizer, tmp_path / "tokenizer")
    path = averaged(known.states[section], tmp_path / "ep-0000800.pt")
    model = import_model(path, told=Told(tokenizer=str(folder), **facts)).model
    assert not isinstance(model, RPiAE)
    found = model.velocity(*inputs)
    wanted = known.expected[f"{prefix}velocity"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=VELOCITIES)


@pytest.mark.parametrize("name", TOKENIZERS)
@torch.inference_mode()
def test_back_to_the_official_layout(golden: Load, tmp_path: Path, name: str) -> None:
    known = golden(name)
    model = imported(known, tmp_path)
    said = write_reference(model, tmp_path / "there")
    assert "rpiae.yaml" in said[0]
    state = torch.load(tmp_path / "there" / "rpiae.pt", weights_only=True)
    used = {n: value for n, value in known.state.items() if not n.startswith("teacher_")}
    folded = {
        "encoder.encoder.embeddings.cls_token", "encoder.encoder.embeddings.mask_token",
        "encoder.encoder.embeddings.position_embeddings", "decoder.trainable_cls_token",
        "decoder.decoder_pos_embed",
    }  # fmt: skip
    assert _shapes(state) == _shapes(used)
    assert {n for n, value in used.items() if not torch.equal(value, state[n])} == folded
    for role in ("encoder.encoder.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        assert torch.equal(state[role][:, 1:], used[role][:, 1:])
    again = import_model(tmp_path / "there").model
    assert isinstance(again, RPiAE)
    images = known.inputs["images"]
    assert torch.equal(again.features(images).tokens, model.features(images).tokens)
    assert torch.equal(again.encode(images).mode(), model.encode(images).mode())
    assert torch.equal(again.reconstruct(images), model.reconstruct(images))


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}

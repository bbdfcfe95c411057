"""Generators against the reference: LightningDiT, all its switches, and the wide head of DDT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError
from rpiae.core.model.blocks import sincos_positions
from rpiae.core.runtime.weights import shapes
from rpiae.generators.dit import Dit
from rpiae.generators.layers import RotaryAttention, normed
from rpiae.interop.reference.lightningdit import (
    Untold,
    config_of,
    dit_from_reference,
    dit_to_reference,
    names_in_reference,
)
from tests.golden.conftest import Load

#: About five noise floors of the reference's own fp32; the files tell them.
TOLERANCE = 1e-5
DDT_TOLERANCE = 3e-5

#: Golden, section of its state, what names of its tensors begin with, what shapes do not tell.
MODELS = {
    "lightningdit": ("generator_lightningdit", "state", "", None),
    "plain": ("generator_plain", "state", "", Untold(num_heads=4)),
    "mixed": ("generator_plain", "state_mixed", "mixed_", Untold(num_classes=5)),
    "woshift": ("generator_plain", "state_woshift", "woshift_", None),
    "ddt": ("generator_ddt", "state", "", None),
}  # fmt: skip
GUIDES = {
    "lightningdit": ("generator_lightningdit", "state_guide", "ag_outside_t", None),
    "ddt": ("generator_ddt", "state_guide", "ag_mixed_t", Untold(head_depth=1)),
}


def loaded(state: Mapping[str, Tensor], told: Untold | None = None) -> Dit:
    config = config_of(shapes(state), told)
    model = config.build()
    assert isinstance(model, Dit)
    model.load_state_dict(dit_from_reference(state, config))
    return model.eval()


def seen(module: nn.Module, calls: dict[str, Any], name: str) -> None:
    """Keep what a module gives, and its first argument, under a name."""

    def keep(_: nn.Module, arguments: Any, output: Any) -> None:
        calls[name] = output
        calls[f"{name}/in"] = arguments[0] if arguments else None

    module.register_forward_hook(keep)


def close(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_velocity(golden: Load, name: str) -> None:
    file, section, prefix, told = MODELS[name]
    here = golden(file)
    model = loaded(here.states[section], told)
    inputs = [here.inputs[f"{prefix}{which}"] for which in "xty"]
    found = model(*inputs)
    close(found, here.expected[f"{prefix}velocity"], DDT_TOLERANCE if name == "ddt" else TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_weight_that_is_off_shows(golden: Load, name: str) -> None:
    file, section, prefix, told = MODELS[name]
    here = golden(file)
    state = here.states[section]
    model, config = loaded(state, told), config_of(shapes(state), told)
    inputs = [here.inputs[f"{prefix}{which}"] for which in "xty"]
    wanted = here.expected[f"{prefix}velocity"]
    tolerance = DDT_TOLERANCE if name == "ddt" else TOLERANCE
    for off, value in state.items():
        try:
            model.load_state_dict(dit_from_reference({**state, off: 1.01 * value}, config))
        except CheckpointError:
            assert "feat_rope" in off  # tables that are computed here, and compared
        else:
            assert (model(*inputs) - wanted).abs().max() > tolerance, off


@pytest.mark.parametrize("name", GUIDES)
@torch.no_grad()
def test_velocity_of_guides(golden: Load, name: str) -> None:
    file, section, time, told = GUIDES[name]
    here = golden(file)
    model = loaded(here.states[section], told)
    wanted = here.expected["guide_velocity"]
    inputs = (here.inputs[which][: len(wanted)] for which in ("cfg_x", time, "cfg_y"))
    close(model(*inputs), wanted)


@pytest.mark.parametrize("name", ["lightningdit", "plain", "mixed", "woshift"])
@torch.no_grad()
def test_the_way_through_a_model(golden: Load, name: str) -> None:
    file, section, prefix, told = MODELS[name]
    here = golden(file)
    model, calls = loaded(here.states[section], told), {}
    seen(model.time, calls, "time")
    seen(model.labels, calls, "labels")
    seen(model.blocks[0], calls, "block0")
    seen(model.final, calls, "final")
    model(*(here.inputs[f"{prefix}{which}"] for which in "xty"))
    close(calls["time"] + calls["labels"], here.expected[f"{prefix}cond"])
    close(calls["block0/in"], here.expected[f"{prefix}tokens_in"])
    close(calls["block0"], here.expected[f"{prefix}block0_out"], 2e-5)
    # The reference's last layer of `mixed` predicts a variance too, which it cuts off afterwards.
    wanted = here.expected[f"{prefix}final_tokens"]
    wanted = wanted.unflatten(-1, (model.patch[0] ** 2, -1))[..., : model.latent_channels]
    close(calls["final"], wanted.flatten(-2))


@torch.no_grad()
def test_attention_and_time(golden: Load) -> None:
    here = golden("generator_lightningdit")
    model, calls = loaded(here.state), {}
    attn = model.blocks[0].attn
    assert isinstance(attn, RotaryAttention)
    seen(attn, calls, "attn")
    seen(model.time, calls, "time")
    seen(model.time.mlp[0], calls, "features")
    model(here.inputs["x"], here.inputs["t"], here.inputs["y"])
    close(calls["features/in"], here.expected["t_fourier"])
    close(calls["time"], here.expected["t_embed"])
    close(calls["attn"], here.expected["block0_attn_out"])
    close(normed(model.blocks[0].norm1, here.inputs["norm_x"]), here.expected["norm_y"])


@torch.no_grad()
def test_queries_and_keys(golden: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    here = golden("generator_lightningdit")
    model, attended = loaded(here.state), []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended.append((q, k))
        return v

    monkeypatch.setattr("rpiae.generators.layers.attention", attention)
    model(here.inputs["x"], here.inputs["t"], here.inputs["y"])
    for found, which in zip(attended[0], "qk", strict=True):
        close(found, here.expected[f"block0_{which}"])


@torch.no_grad()
def test_layer_norms(golden: Load) -> None:
    here = golden("generator_plain")
    plain = loaded(here.state, Untold(num_heads=4))
    close(normed(plain.blocks[0].norm1, here.inputs["norm_x"]), here.expected["norm_y"])
    mixed = loaded(here.states["state_mixed"], Untold(num_classes=5))
    found = normed(mixed.blocks[0].attn.q_norm, here.inputs["mixed_qnorm_x"])
    close(found, here.expected["mixed_qnorm_y"])


@torch.no_grad()
def test_the_way_through_a_wide_head(golden: Load) -> None:
    here = golden("generator_ddt")
    model, calls = loaded(here.state), {}
    assert model.head is not None
    seen(model.time, calls, "t_embed")
    seen(model.labels, calls, "y_embed")
    seen(model.blocks[0], calls, "block0_out")
    seen(model.blocks[-1], calls, "encoder_out")
    seen(model.head.projection, calls, "decoder_cond")
    seen(model.head.blocks[0], calls, "decoder_block0_out")
    model(here.inputs["x"], here.inputs["t"], here.inputs["y"])
    given = {
        "tokens_in": calls["block0_out/in"], "s_activated": calls["decoder_cond/in"],
        "decoder_tokens_in": calls["decoder_block0_out/in"],
    }  # fmt: skip
    for name, found in {**calls, **given}.items():
        if "/" not in name:
            close(found, here.expected[name], DDT_TOLERANCE)
    conditions = torch.nn.functional.silu(calls["t_embed"] + calls["y_embed"])
    close(conditions, here.expected["cond"])


def test_rotary_tables_and_first_positions(golden: Load) -> None:
    here, wide = golden("generator_lightningdit"), golden("generator_ddt")
    model, other = loaded(here.state), loaded(wide.state)
    assert model.rotary is not None
    assert other.rotary is not None
    assert other.head is not None
    assert other.head.rotary is not None
    for rotary, golden_file, which in (
        (model.rotary, here, ""), (other.rotary, wide, "enc_"), (other.head.rotary, wide, "dec_"),
    ):  # fmt: skip
        for found, kind in zip(rotary((6, 6)), ("cos", "sin"), strict=True):
            wanted = golden_file.expected[f"{which}rope_{kind}"]
            close(found, wanted, 1e-6)
    for golden_file in (here, wide):
        wanted = golden_file.expected["pos_embed_init"][0]
        close(sincos_positions(6, 6, wanted.shape[-1]), wanted, 1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_config_is_read_off_the_shapes(golden: Load, name: str) -> None:
    file, section, prefix, told = MODELS[name]
    here = golden(file)
    found = config_of(shapes(here.states[section]), told)
    wanted = here.facts[f"constructor_{prefix}".rstrip("_")]
    sizes = {
        "patch": "patch_size", "latent_channels": "in_channels", "rows": "input_size",
        "columns": "input_size", "mlp_ratio": "mlp_ratio", "num_classes": "num_classes",
        "qk_norm": "use_qknorm", "swiglu": "use_swiglu", "rope": "use_rope",
        "rms_norm": "use_rmsnorm",
    }  # fmt: skip
    assert {own: getattr(found, own) for own in sizes} == {
        own: wanted[n] for own, n in sizes.items()
    }
    assert found.shifts == (not wanted["wo_shift"])
    for own, theirs in (("width", "hidden_size"), ("depth", "depth"), ("num_heads", "num_heads")):
        of_head = getattr(found, f"head_{own.removeprefix('num_')}")
        both = [getattr(found, own), of_head] if name == "ddt" else getattr(found, own)
        assert both == wanted[theirs]
    assert (found.head_depth > 0) == (name == "ddt")


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(golden: Load, name: str) -> None:
    file, section, _, told = MODELS[name]
    state = golden(file).states[section]
    config = config_of(shapes(state), told)
    own = dit_from_reference(state, config)
    assert len(set(names_in_reference(config).values())) == len(own)
    there = dit_to_reference(own, config)
    assert set(there) == set(state)
    if name != "mixed":  # its variance, and that it has no row for no class, are not kept
        for tensor, value in state.items():
            close(there[tensor], value, 1e-6 if "feat_rope" in tensor else 0.0)
    back = dit_from_reference(there, config)
    assert all(torch.equal(back[tensor], own[tensor]) for tensor in own)


def test_what_shapes_leave_open_is_asked_for(golden: Load) -> None:
    plain, wide = golden("generator_plain"), golden("generator_ddt")
    with pytest.raises(CheckpointError, match=r"how many attention heads .* --heads"):
        config_of(shapes(plain.state))
    with pytest.raises(CheckpointError, match=r"which of its 2 blocks .* --head-depth"):
        config_of(shapes(wide.states["state_guide"]))
    with pytest.raises(CheckpointError, match="a head of 2 blocks does not fit its 2 blocks"):
        config_of(shapes(wide.states["state_guide"]), Untold(head_depth=2))


def test_other_states_are_refused(golden: Load) -> None:
    state = dict(golden("generator_lightningdit").state)
    config = config_of(shapes(state))
    without = {n: v for n, v in state.items() if n != "blocks.1.mlp.w3.bias"}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.w3\.bias is missing"):
        dit_from_reference(without, config)
    with pytest.raises(CheckpointError, match="has no mask_token"):
        dit_from_reference(state | {"mask_token": torch.zeros(1)}, config)
    with pytest.raises(CheckpointError, match=r"t_embedder\.W has values that are not finite"):
        dit_from_reference(state | {"t_embedder.W": torch.full((256,), torch.nan)}, config)
    turned = state["feat_rope.freqs_cos"].roll(1, dims=1)
    with pytest.raises(CheckpointError, match="rotary positions of another rule"):
        dit_from_reference(state | {"feat_rope.freqs_cos": turned}, config)
    with pytest.raises(CheckpointError, match=r"t_embedder\.W is missing"):
        config_of({n: tuple(v.shape) for n, v in state.items() if n != "t_embedder.W"})
    with pytest.raises(CheckpointError, match="its 35 tokens are no square"):
        config_of(shapes(state) | {"pos_embed": (1, 35, 96)})
    with pytest.raises(CheckpointError, match="is for 9 values per token, and its latents have 8"):
        config_of(shapes(state) | {"final_layer.linear.bias": (9,)})
    with pytest.raises(CheckpointError, match=r"11 rows, for 10 classes .* 11 classes, not for 12"):
        config_of(shapes(state), Untold(num_classes=12))
    bare = {n: shape for n, shape in shapes(state).items() if not n.startswith("blocks.")}
    with pytest.raises(CheckpointError, match=r"blocks\.0\..* is missing"):
        config_of(bare)

"""MAE and SigLIP encoders, with weights in transformers' layouts, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen
from safetensors.torch import save_file
from torch import Tensor

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.errors import CheckpointError
from rpiae.core.model.adapters import (
    from_transformers,
    siglip_encoder_from_transformers,
    siglip_encoder_to_transformers,
    vit_encoder_from_transformers,
    vit_encoder_to_transformers,
)
from rpiae.core.model.resolve import part_config
from rpiae.encoders.timm import TimmEncoder
from tests.golden.conftest import Load

# Normed tokens are of size 1 to 4; the reference itself is 4e-6 from float64.
TOLERANCE = 1e-5

State = dict[str, Tensor]


@frozen(kw_only=True)
class Case:
    """One golden file and what its tensors do not say."""

    name: str
    model: str
    facts: str
    here: Callable[[State], State]
    there: Callable[[State], State]
    dropped: tuple[str, ...]
    prefix: str = ""


CASES = (
    Case(
        name="encoder_mae", model="vit_base_patch16_224", facts="hf_config", prefix="vit.",
        here=vit_encoder_from_transformers, there=vit_encoder_to_transformers,
        dropped=("vit.layernorm.",),
    ),
    Case(
        name="encoder_siglip", model="vit_base_patch16_siglip_224", facts="hf_vision_config",
        here=siglip_encoder_from_transformers, there=siglip_encoder_to_transformers,
        dropped=("vision_model.head.", "vision_model.post_layernorm."),
    ),
)  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def tree(case: Case, golden: Load) -> dict[str, Any]:
    facts = golden(case.name).facts[case.facts]
    return {
        "name": "timm",
        "model": case.model,
        "eps": facts["layer_norm_eps"],
        "model_args": {
            "embed_dim": facts["hidden_size"],
            "depth": facts["num_hidden_layers"],
            "num_heads": facts["num_attention_heads"],
            "mlp_ratio": facts["intermediate_size"] / facts["hidden_size"],
            "img_size": facts["image_size"],
        },
    }


def _built(tree: dict[str, Any]) -> tuple[EncoderConfig, TimmEncoder]:
    config = part_config("encoders", tree)
    assert isinstance(config, EncoderConfig)
    encoder = config.build()
    assert isinstance(encoder, TimmEncoder)
    return config, encoder.eval()


@pytest.mark.parametrize("size", [224, 256])
def test_tokens_of_a_file_in_the_foreign_layout(
    case: Case, golden: Load, tree: dict[str, Any], size: int, tmp_path: Path
) -> None:
    known = golden(case.name)
    path = tmp_path / "foreign.safetensors"
    save_file(known.state, path)
    config, encoder = _built({**tree, "weights": str(path)})
    config.load_pretrained(encoder)
    with torch.inference_mode():
        found = encoder(known.inputs[f"pixel_values_{size}"])
    assert found.grid == (1, size // 16, size // 16)
    torch.testing.assert_close(
        found.tokens, known.expected[f"patch_tokens_{size}"], rtol=0, atol=TOLERANCE
    )


def test_the_other_rules_miss_the_reference(golden: Load, tree: dict[str, Any], case: Case) -> None:
    known = golden(case.name)
    wrong = {"act_layer": "gelu" if "siglip" in case.name else "gelu_tanh"}
    _, encoder = _built({**tree, "model_args": {**tree["model_args"], **wrong}})
    encoder.load_state_dict(case.here(known.state))
    with torch.inference_mode():
        found = encoder(known.inputs["pixel_values_224"]).tokens
    assert (found - known.expected["patch_tokens_224"]).abs().max() > 10 * TOLERANCE


def test_round_trip(case: Case, golden: Load) -> None:
    state = golden(case.name).state
    own = case.here(state)
    there = case.there(own)
    kept = {k: v for k, v in state.items() if not k.startswith(case.dropped)}
    assert set(there) == {name.removeprefix(case.prefix) for name in kept}
    assert all(torch.equal(there[k.removeprefix(case.prefix)], v) for k, v in kept.items())
    back = case.here(there)
    assert list(back) == list(own)
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_the_layout_is_told_by_its_names(case: Case, golden: Load) -> None:
    state = golden(case.name).state
    found = from_transformers(state)
    assert found is not None
    assert all(torch.equal(value, found[name]) for name, value in case.here(state).items())
    assert from_transformers(found) is None


def test_a_missing_and_an_unknown_key_are_named(case: Case, golden: Load) -> None:
    state = golden(case.name).state
    foreign = next(iter(case.there(case.here(state))))
    without = {name: value for name, value in state.items() if not name.endswith(foreign)}
    with pytest.raises(CheckpointError, match=f"{foreign} is missing"):
        case.here(without)
    strange = f"{case.prefix or 'vision_model.'}strange"
    with pytest.raises(CheckpointError, match=r"has no (vision_model\.)?strange"):
        case.here(state | {strange: torch.zeros(1)})


def test_dinov2_of_transformers_is_told_too(golden: Load) -> None:
    found = from_transformers(golden("encoder_dinov2").state)
    assert found is not None
    assert "network.reg_token" in found

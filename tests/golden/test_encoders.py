"""The DINOv2 encoder, with weights in transformers' layout, against the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from rpiae.core.errors import CheckpointError
from rpiae.core.model.adapters import encoder_from_reference, encoder_to_reference
from rpiae.encoders.timm import TimmEncoder

if TYPE_CHECKING:
    from tests.golden.conftest import Golden, Load

# Normed tokens are of size 1 to 4, one fp32 rounding of which is 2e-7 to 5e-7, through three blocks.
TOLERANCE = 1e-5


@pytest.fixture
def encoder_dinov2(golden: Load) -> Golden:
    return golden("encoder_dinov2")


@pytest.fixture
def encoder(encoder_dinov2: Golden) -> TimmEncoder:
    facts = encoder_dinov2.facts
    built = TimmEncoder(
        model="vit_small_patch14_reg4_dinov2",
        model_args={
            "embed_dim": facts["hidden_size"],
            "depth": facts["num_hidden_layers"],
            "num_heads": facts["num_attention_heads"],
            "img_size": facts["native_image_size"],
            "reg_tokens": facts["num_register_tokens"],
        },
        mean=tuple(facts["image_mean"]),
        std=tuple(facts["image_std"]),
    )
    built.load_state_dict(encoder_from_reference(encoder_dinov2.state))
    return built.eval()


@pytest.mark.parametrize(
    ("given", "wanted", "grid"),
    [("images", "tokens", (1, 16, 16)), ("images_168x252", "tokens_168x252", (1, 12, 18))],
)
def test_tokens(
    encoder_dinov2: Golden,
    encoder: TimmEncoder,
    given: str,
    wanted: str,
    grid: tuple[int, int, int],
) -> None:
    # The stored images lie in [0, 1]: the file states mean and std, and the reference applied them.
    images = encoder_dinov2.inputs[given]
    assert images.min() == 0
    assert images.max() == 1
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    with torch.inference_mode():
        found = encoder((images - mean) / std)
    assert found.grid == grid
    torch.testing.assert_close(
        found.tokens, encoder_dinov2.expected[wanted], rtol=0, atol=TOLERANCE
    )


def test_the_inverse_gives_the_same_function(encoder_dinov2: Golden) -> None:
    own = encoder_from_reference(encoder_dinov2.state)
    there = encoder_to_reference(own)
    dropped = {"embeddings.mask_token", "layernorm.weight", "layernorm.bias"}
    assert set(there) == set(encoder_dinov2.state) - dropped
    assert {k: v.shape for k, v in there.items()} == {
        k: encoder_dinov2.state[k].shape for k in there
    }
    back = encoder_from_reference(there)
    assert list(back) == list(own)
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_without_registers_the_class_position_stays(encoder_dinov2: Golden) -> None:
    state = {k: v for k, v in encoder_dinov2.state.items() if k != "embeddings.register_tokens"}
    own = encoder_from_reference(state)
    assert torch.equal(own["network.pos_embed"], state["embeddings.position_embeddings"])
    assert torch.equal(own["network.cls_token"], state["embeddings.cls_token"])
    encoder = TimmEncoder(
        model="vit_small_patch14_dinov2",
        model_args={"embed_dim": 64, "depth": 3, "num_heads": 4},
    )
    encoder.load_state_dict(own)
    back = encoder_to_reference(own)
    assert all(torch.equal(back[name], state[name]) for name in back)


@pytest.mark.parametrize(
    "name", ["embeddings.cls_token", "encoder.layer.1.attention.attention.key.bias"]
)
def test_a_missing_key_is_named(encoder_dinov2: Golden, name: str) -> None:
    state = {k: v for k, v in encoder_dinov2.state.items() if k != name}
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        encoder_from_reference(state)


def test_an_unknown_key_is_named(encoder_dinov2: Golden) -> None:
    state = encoder_dinov2.state | {"pooler.dense.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"has no pooler\.dense\.weight"):
        encoder_from_reference(state)

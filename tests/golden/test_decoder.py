"""The ViT decoder against the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from rpiae.core.errors import CheckpointError
from rpiae.core.model.adapters import decoder_from_reference, decoder_to_reference
from rpiae.core.model.blocks import sincos_positions
from rpiae.core.model.contracts import Features
from rpiae.core.model.geometry import patchify
from rpiae.decoders.vit import VitDecoder

if TYPE_CHECKING:
    from torch import Tensor

    from tests.golden.conftest import Golden, Load


@pytest.fixture
def stage1(golden: Load) -> Golden:
    return golden("rpiae_stage1")


def _decoder_state(golden: Golden) -> dict[str, Tensor]:
    return {k: v for k, v in golden.state.items() if k.startswith("decoder.")}


@pytest.fixture
def decoder(stage1: Golden) -> VitDecoder:
    facts = stage1.facts["decoder"]
    grid = tuple(facts["grid"])
    built = VitDecoder(
        features=stage1.facts["encoder"]["hidden_size"],
        patch=facts["patch_size"],
        width=facts["decoder_hidden_size"],
        depth=facts["decoder_num_hidden_layers"],
        num_heads=facts["decoder_num_attention_heads"],
        mlp_hidden=facts["decoder_intermediate_size"],
        stored_grid=grid,
    )
    built.load_state_dict(decoder_from_reference(_decoder_state(stage1), grid=grid))
    return built.eval()


@torch.inference_mode()
def test_pixels(stage1: Golden, decoder: VitDecoder) -> None:
    features = Features(stage1.expected["encoder_tokens"], (1, 16, 16))
    pixels = patchify(decoder(features), decoder.patch)
    # The reconstruction's floor is 2.4e-6 after × std (0.225), so 1.1e-5 before it.
    torch.testing.assert_close(pixels, stage1.expected["decoder_logits"], rtol=0, atol=2e-5)


def test_initial_positions(stage1: Golden) -> None:
    grid = stage1.facts["decoder"]["grid"]
    wanted = stage1.expected["decoder_pos_embed_init"][0]
    found = sincos_positions(*grid, wanted.shape[-1])
    assert not wanted[0].any()
    # Both are float64 sines and cosines, rounded once to fp32.
    torch.testing.assert_close(found, wanted[1:], rtol=0, atol=1e-7)


def test_the_inverse_gives_the_same_function(stage1: Golden) -> None:
    state = _decoder_state(stage1)
    own = decoder_from_reference(state, grid=(16, 16))
    there = decoder_to_reference(own)
    assert {f"decoder.{name}" for name in there} == set(state)
    assert not there["decoder_pos_embed"][:, 0].any()
    back = decoder_from_reference(there, grid=(16, 16))
    assert all(torch.equal(back[name], own[name]) for name in own)
    first = state["decoder.decoder_pos_embed"][:, :1] + state["decoder.trainable_cls_token"]
    assert torch.equal(there["trainable_cls_token"], first)


def test_the_grid_is_never_guessed(stage1: Golden) -> None:
    state = _decoder_state(stage1)
    flat = decoder_from_reference(state, grid=(8, 32))
    assert flat["positions"].shape[:3] == (1, 8, 32)
    with pytest.raises(CheckpointError, match=r"256 positions.* do not fill a grid of 16×15"):
        decoder_from_reference(state, grid=(16, 15))


def test_missing_and_unknown_keys_are_named(stage1: Golden) -> None:
    state = _decoder_state(stage1)
    name = "decoder_layers.1.output.dense.weight"
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        decoder_from_reference(
            {k: v for k, v in state.items() if not k.endswith(name)}, grid=(16, 16)
        )
    with pytest.raises(CheckpointError, match=r"has no mask_token"):
        decoder_from_reference(state | {"decoder.mask_token": torch.zeros(1)}, grid=(16, 16))
    own = decoder_from_reference(state, grid=(16, 16))
    del own["positions"]
    with pytest.raises(CheckpointError, match="positions is missing"):
        decoder_to_reference(own)

"""The variational bridge, with two heads, against the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from rpiae.bridges.variational import VariationalBridge
from rpiae.core.errors import CheckpointError
from rpiae.core.model.adapters import bridge_from_reference, bridge_to_reference
from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import Features
from rpiae.core.model.geometry import map_grid, map_to_tokens, tokens_to_map

if TYPE_CHECKING:
    from tests.golden.conftest import Golden, Load

# The floor of the golden against float64 is 2e-6 for the moments and 9e-6 for the decoded map, whose
# values reach 10; two fp32 evaluations may stand on both sides of it.
TOLERANCE = 1e-4


@pytest.fixture
def bridge_heads2(golden: Load) -> Golden:
    return golden("bridge_heads2")


@pytest.fixture
def bridge(bridge_heads2: Golden) -> VariationalBridge:
    facts = bridge_heads2.facts
    built = VariationalBridge(
        features=facts["hidden"],
        latent_channels=facts["vb_latent_dim"],
        decoder_layers=facts["decoder_layers"],
        encoder_mlp_ratio=facts["mlp_ratio_encoder"],
        decoder_mlp_ratio=facts["ffn_decoder"] / facts["hidden"],
    )
    built.load_state_dict(bridge_from_reference(bridge_heads2.state))
    return built.eval()


def test_number_of_heads(bridge_heads2: Golden, bridge: VariationalBridge) -> None:
    assert bridge.encoder.attn.num_heads == bridge_heads2.facts["n_heads"] == 2


@torch.inference_mode()
def test_posterior(bridge_heads2: Golden, bridge: VariationalBridge) -> None:
    feature_map = bridge_heads2.inputs["z_map"]
    posterior = bridge.encode(Features(map_to_tokens(feature_map), map_grid(feature_map)))
    expected = bridge_heads2.expected
    for name in ("mean", "logvar"):
        wanted = as_clip(expected[f"posterior_{name}"])
        torch.testing.assert_close(getattr(posterior, name), wanted, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(posterior.kl(), expected["kl_mean"], rtol=1e-5, atol=0)


@torch.inference_mode()
def test_decoded_features(bridge_heads2: Golden, bridge: VariationalBridge) -> None:
    features = bridge.decode(as_clip(bridge_heads2.expected["posterior_mean"]))
    wanted = as_clip(bridge_heads2.expected["vb_decoded"])
    torch.testing.assert_close(tokens_to_map(*features), wanted, rtol=0, atol=TOLERANCE)


def test_round_trip(bridge_heads2: Golden) -> None:
    back = bridge_to_reference(bridge_from_reference(bridge_heads2.state))
    assert set(back) == set(bridge_heads2.state)
    assert all(torch.equal(back[name], value) for name, value in bridge_heads2.state.items())


def test_missing_and_unknown_keys_are_named(bridge_heads2: Golden) -> None:
    name = "vb_feature_decoder.net.3.linear1.weight"
    incomplete = {k: v for k, v in bridge_heads2.state.items() if k != name}
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        bridge_from_reference(incomplete)
    with pytest.raises(CheckpointError, match=r"has no vb_feature_encoder\.extra"):
        bridge_from_reference(bridge_heads2.state | {"vb_feature_encoder.extra": torch.zeros(1)})
    own = bridge_from_reference(bridge_heads2.state)
    del own["encoder.skip.bias"]
    with pytest.raises(CheckpointError, match=r"encoder\.skip\.bias is missing"):
        bridge_to_reference(own)

"""Checks of a part against ``rpiae.core.model.contracts``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rpiae.core.config.parts import (
    BridgeConfig,
    CriticConfig,
    DecoderConfig,
    EncoderConfig,
)
from rpiae.core.model.contracts import (
    BlockFeatures,
    Bridge,
    Critic,
    Decoder,
    Encoder,
    Features,
    Fittable,
    GaussianPosterior,
    QuantisedPosterior,
)
from rpiae.core.model.temporal import TemporalBridge, TemporalDecoder, temporal_downsampling
from rpiae.testing.causal import check_causal_bridge, check_causal_decoder
from rpiae.testing.modules import check_features, check_gradients, check_patch, seeded, unfit


def check_encoder(config: EncoderConfig, *, grid: tuple[int, int] = (2, 3)) -> None:
    """An encoder's facts, shapes, non-square grids, gradients and meta construction.

    An encoder of images is shown images, one of clips a clip of two tokens' frames.

    Args:
        config: of a small encoder.
        grid: rows and columns to try.
    """
    facts = config.describe()
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in config.build().state_dict().items()}
    encoder = seeded(config)
    assert isinstance(encoder, Encoder), unfit(encoder, Encoder)
    assert shapes == {n: p.shape for n, p in encoder.state_dict().items()}, "meta build differs"
    for name in ("width", "num_blocks", "mean", "std"):
        said, has = getattr(facts, name), getattr(encoder, name)
        assert said == has, f"describe() says {name} = {said}, the module has {has}"
    check_patch(encoder.patch, facts.patch, frames=facts.frames)
    rows, columns = grid
    pt, ph, pw = encoder.patch
    steps = 2 if pt > 1 else 1
    frames = (steps * pt,) if pt > 1 else ()
    images = torch.randn(2, 3, *frames, rows * ph, columns * pw)
    features = encoder(images)
    check_features(features, (2, steps * rows * columns, facts.width), (steps, rows, columns))
    turned = encoder(torch.randn(2, 3, *frames, columns * ph, rows * pw))
    assert turned.grid == (steps, columns, rows), "height and width are swapped"
    found = encoder.blocks(images, [0, -1])
    assert isinstance(found, BlockFeatures)
    assert [t.shape for t in found.tokens] == [features.tokens.shape] * 2
    assert found.grid == features.grid
    check_gradients(encoder, features.tokens)
    assert encoder.last_weight.grad is not None, "last_weight takes no part in the tokens"
    assert any(encoder.last_weight is p for p in encoder.parameters()), (
        "last_weight is no parameter"
    )


def check_bridge(config: BridgeConfig) -> None:
    """A bridge's facts, fit, shapes on non-square grids of images and clips, posterior and gradients;
    of one that compresses time, see ``check_causal_bridge`` too.

    Args:
        config: of a small bridge, its wired fields filled.
    """
    facts = config.describe()
    bridge = seeded(config)
    assert isinstance(bridge, Bridge), unfit(bridge, Bridge)
    assert bridge.latent_channels == facts.latent_channels
    assert bridge.gaussian == facts.gaussian
    assert bridge.downsampling == facts.downsampling, "describe() gives another downsampling"
    assert temporal_downsampling(bridge) == facts.temporal_downsampling, (
        "describe() gives another temporal_downsampling"
    )
    assert isinstance(bridge, Fittable) == facts.fitted, "describe().fitted is wrong"
    if isinstance(bridge, Fittable):
        _check_fit(bridge, seeded(config))
    rows, columns = 2 * facts.downsampling, 3 * facts.downsampling
    tokens = torch.randn(2, rows * columns, bridge.features)
    posterior = bridge.encode(Features(tokens, (1, rows, columns)))
    latent = posterior.mode()
    shape = (2, facts.latent_channels, 1, 2, 3)
    assert latent.shape == shape, f"the latent is {tuple(latent.shape)}, described as {shape}"
    noise = torch.randn(latent.shape)
    assert torch.equal(posterior.sample(noise), posterior.sample(noise)), "sample is not repeatable"
    if facts.gaussian:
        other = posterior.sample(torch.randn(latent.shape))
        assert not torch.equal(posterior.sample(noise), other), "sample ignores its noise"
    decoded = bridge.decode(posterior.sample(noise))
    check_features(decoded, tuple(tokens.shape), (1, rows, columns))
    if facts.gaussian:
        assert isinstance(posterior, GaussianPosterior), unfit(posterior, GaussianPosterior)
        assert posterior.kl().ndim == 0
        assert posterior.kl() >= 0
    if isinstance(posterior, QuantisedPosterior):
        _check_indices(posterior, latent)
    steps = 1 + facts.temporal_downsampling
    clip = Features(torch.randn(2, steps * rows * columns, bridge.features), (steps, rows, columns))
    back = bridge.decode(bridge.encode(clip).mode())
    check_features(back, tuple(clip.tokens.shape), clip.grid)
    check_gradients(bridge, decoded.tokens)
    if isinstance(bridge, TemporalBridge):
        check_causal_bridge(bridge)


def _check_fit(bridge: Fittable, again: nn.Module) -> None:
    """A fit is told, leaves a trace in the state, and is a pure function of the tokens."""
    assert isinstance(bridge, Bridge)
    assert isinstance(bridge, nn.Module)
    assert isinstance(again, Fittable)
    kept = {name.rpartition(".")[2] for name in bridge.state_dict()}
    assert "fitted" in kept, "`fitted` is no buffer, so a resumed run fits again"
    assert not bridge.fitted, "a new bridge is fitted already"
    side = 4 * bridge.downsampling
    shape = (math.ceil(8 * bridge.features / side**2), side**2, bridge.features)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    batches = [Features(part, (1, side, side)) for part in torch.split(tokens, 3)]
    found = bridge.fit(batch for batch in batches)
    assert found.tokens == shape[0] * shape[1]
    assert 0 <= found.kept <= 1 + 1e-6
    assert bridge.fitted
    assert again.fit(batches) == found
    states = zip(bridge.state_dict().items(), again.state_dict().values(), strict=True)
    changed = [name for (name, one), other in states if not torch.equal(one, other)]
    assert not changed, f"two fits to the same tokens differ in {changed}"
    assert all(p.requires_grad for p in bridge.parameters()), "a fitted bridge cannot be trained"


def _check_indices(posterior: QuantisedPosterior, latent: Tensor) -> None:
    """Codes are one per latent position, within the codebook, and the mode is what is sampled."""
    indices = posterior.indices
    assert indices.shape == (latent.shape[0], *latent.shape[2:])
    assert not indices.is_floating_point(), "indices are integers"
    assert int(indices.min()) >= 0
    assert int(indices.max()) < posterior.codebook_size
    assert torch.equal(posterior.sample(torch.randn(latent.shape)), latent)
    for code in torch.unique(indices):
        chosen = latent.movedim(1, -1)[indices == code]
        assert (chosen == chosen[0]).all(), f"code {code} stands for several latents"


def check_decoder(config: DecoderConfig) -> None:
    """A decoder's shapes on non-square grids of images and clips, and gradients; of one that sees
    earlier frames, see ``check_causal_decoder`` too.

    Args:
        config: of a small decoder, its wired fields filled.
    """
    decoder = seeded(config)
    assert isinstance(decoder, Decoder), unfit(decoder, Decoder)
    assert config.patch is not None
    check_patch(decoder.patch, config.patch, frames=config.frames_per_token)
    assert decoder.features == config.features
    frames, rows, columns = decoder.patch
    for steps in (2, 1):
        clip = decoder(Features(torch.randn(2, steps * 6, decoder.features), (steps, 2, 3)))
        shape = (2, 3, steps * frames, 2 * rows, 3 * columns)
        assert clip.shape == shape, f"{tuple(clip.shape)} on {steps} × 2 × 3 tokens, not {shape}"
    check_gradients(decoder, clip)
    assert decoder.last_weight.grad is not None, "last_weight takes no part in the images"
    if isinstance(decoder, TemporalDecoder):
        check_causal_decoder(decoder)


def check_critic(config: CriticConfig, *, size: tuple[int, int] = (40, 56)) -> None:
    """A critic's logits, its gradients, and that it judges every image on its own.

    Args:
        config: of a small critic.
        size: height and width of the images to try.
    """
    critic = seeded(config)
    assert isinstance(critic, Critic), unfit(critic, Critic)
    trained = [n for n, p in critic.named_parameters() if p.requires_grad]
    assert trained, "the critic has nothing to learn with"
    images = torch.rand(3, 3, *size, requires_grad=True)
    critic.eval()
    logits = critic(images)
    assert logits.ndim == 2, f"logits are (images, any number), not {tuple(logits.shape)}"
    assert logits.shape[0] == 3
    alone = torch.cat([critic(image[None]) for image in images])
    torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-4)
    check_gradients(critic, logits)
    assert images.grad is not None, "no gradient passes to the images"
    assert images.grad.abs().sum() > 0
    frozen = [n for n, p in critic.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not frozen, f"frozen parameters with a gradient: {frozen}"

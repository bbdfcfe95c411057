"""A tokenizer's forward pass along a stage's path."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.config.recipe import StageConfig
from rpiae.core.model.contracts import Critic, Features, Replica, StepContext
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.training.balance import Entry, Layer, Meeting, Meetings

#: Needs of terms that bring no gradient of their own.
_WITHOUT_GRADIENT = frozenset({"replica", "critic"})

#: Needs whose gradient enters at one meeting: the encoder's output and the reconstruction.
_ENTRIES: dict[frozenset[str], Entry] = {
    frozenset({"features"}): "first",
    frozenset({"pixels"}): "last",
}


def entry(needs: frozenset[str]) -> Entry:
    """Where the gradient of a term with these needs enters the pass."""
    return _ENTRIES.get(needs - _WITHOUT_GRADIENT, "anywhere")


def layers(model: RPiAE) -> dict[str, Layer]:
    """What the ``layer`` of an ``AdaptiveConfig`` stands for.

    ``encoder-last`` is the encoder's last parameter, whichever that is.
    """
    encoder, decoder = model.encoder, model.decoder
    assert isinstance(encoder, nn.Module)
    return {
        "encoder": Layer(meeting="first", weight=encoder.last_weight),
        "encoder-last": Layer(meeting="first", weight=list(encoder.parameters())[-1]),
        "decoder": Layer(meeting="last", weight=decoder.last_weight),
    }


def stage_forward(
    model: RPiAE,
    images: Float[Tensor, "b 3 h w"],
    *,
    stage: StageConfig,
    draws: StepRandomness,
    replica: Replica,
    critic: Critic | None = None,
    cut: bool = False,
) -> tuple[StepContext, Meetings]:
    """One pass along a stage's path; only the frozen prefix runs without gradients.

    The decoder's path (and the bridge, where it is in it) sees the noisy features; terms that
    compare features see the clean ones.

    Args:
        model: the tokenizer.
        images: in [0, 1].
        stage: path, posterior and noise.
        draws: of these images.
        replica: the frozen pivot, for the terms.
        critic: the stage's critic, for the terms.
        cut: whether the graph is cut at the features and at the reconstruction.
    """
    learns = torch.is_grad_enabled()
    live = learns and _trains(model.encoder)
    with torch.set_grad_enabled(live):
        features = model.features(images)
    first = None
    if cut and features.tokens.requires_grad:
        first = Meeting.at(features.tokens)
        features = Features(first.cut, features.grid)
    noisy = with_noise(features, tau=stage.noise, draws=draws)
    posterior = latent = decoded = None
    expanded = noisy
    if stage.use_bridge:
        with torch.set_grad_enabled(live or (learns and _trains(model.bridge))):
            posterior = model.posterior(noisy)
            latent = posterior.mode()
            if stage.posterior == "sample":
                latent = posterior.sample(draws.normal_like(latent, "posterior"))
            decoded = expanded = model.expand(latent)
    reconstruction = model.decode_features(expanded, size=images.shape[2:])
    last = None
    if cut and reconstruction.requires_grad:
        last = Meeting.at(reconstruction)
        reconstruction = last.cut
    context = StepContext(
        images=images, features=features, posterior=posterior, latent=latent,
        decoded_features=decoded, reconstruction=reconstruction, replica=replica, draws=draws,
        expand=model.expand if stage.use_bridge else None, critic=critic,
    )  # fmt: skip
    return context, Meetings(first, last)


def with_noise(features: Features, *, tau: float, draws: StepRandomness) -> Features:
    """z + σ·ε with ε ~ N(0, I) and one σ ~ U(0, τ) per sample; unchanged for τ = 0."""
    if tau == 0:
        return features
    sigma = tau * draws.uniform("noise-level", features.tokens.device)
    noise = draws.normal_like(features.tokens, "noise")
    return Features(features.tokens + sigma.view(-1, 1, 1) * noise, features.grid)


def _trains(module: object) -> bool:
    assert isinstance(module, nn.Module)
    return any(parameter.requires_grad for parameter in module.parameters())

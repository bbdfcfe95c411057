"""A player: what is trained, its optimiser, and a module whose forward computes its losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from attrs import frozen
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.config.recipe import OptimiserConfig, StageConfig, StageLength
from rpiae.core.model.contracts import Critic, Features, Replica, StepContext
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.training.adaptive import Junction
from rpiae.core.training.objective import Objective, Outcome
from rpiae.core.training.schedules import learning_rate


class ModelPlayer(nn.Module):
    """The model as a player of one stage.

    Only parts with something to train are its submodules; frozen ones are held aside, so that a
    distributed wrapper sees just what is trained.

    Args:
        model: the tokenizer, its modes and requires_grad set for the stage.
        stage: path, posterior and noise.
        objective: the stage's terms.
        replica: the frozen pivot.
        critic: the stage's critic, where it has one.
    """

    def __init__(
        self,
        model: RPiAE,
        *,
        stage: StageConfig,
        objective: Objective,
        replica: Replica,
        critic: Critic | None = None,
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(
            {
                role: part
                for role, part in model.roles.items()
                if any(p.requires_grad for p in part.parameters())
            }
        )
        self._held = (model, critic)
        self._stage = stage
        self._objective = objective
        self._replica = replica

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        draws: StepRandomness,
        step: int,
        share: float = 1.0,
        whole: bool = True,
    ) -> Outcome:
        """Losses of a batch, or of one part of it; see ``Objective.__call__``."""
        junction = self._objective.junction(step) if whole else None
        context = stage_forward(
            self._held[0], images, stage=self._stage, draws=draws, replica=self._replica,
            junction=junction[1] if junction else None, critic=self._held[1],
        )  # fmt: skip
        return self._objective(context, step, share=share, whole=whole, junction=junction)


def stage_forward(
    model: RPiAE,
    images: Float[Tensor, "b 3 h w"],
    *,
    stage: StageConfig,
    draws: StepRandomness,
    replica: Replica,
    junction: Junction | None = None,
    critic: Critic | None = None,
) -> StepContext:
    """One pass along a stage's path; only the frozen prefix runs without gradients.

    The decoder's path (and the bridge, where it is in it) sees the noisy features; terms that
    compare features see the clean ones, from the other side of the junction where there is one.
    """
    live = torch.is_grad_enabled() and _trains(model.encoder)
    with torch.set_grad_enabled(live):
        features = model.features(images)
    path = features
    if junction is not None:
        onward, compared = junction.split(features.tokens)
        path, features = Features(onward, features.grid), Features(compared, features.grid)
    noisy = with_noise(path, tau=stage.noise, draws=draws)
    if not stage.use_bridge:
        return StepContext(
            images=images, features=features, posterior=None, latent=None, decoded_features=None,
            reconstruction=_decoded(model, noisy, images), replica=replica, draws=draws,
            critic=critic,
        )  # fmt: skip
    live = live or (torch.is_grad_enabled() and _trains(model.bridge))
    with torch.set_grad_enabled(live):
        posterior = model.posterior(noisy)
        latent = posterior.mode()
        if stage.posterior == "sample":
            latent = posterior.sample(draws.normal_like(latent, "posterior"))
        expanded = model.expand(latent)
    return StepContext(
        images=images, features=features, posterior=posterior, latent=latent,
        decoded_features=expanded, reconstruction=_decoded(model, expanded, images),
        replica=replica, draws=draws, expand=model.expand, critic=critic,
    )  # fmt: skip


def with_noise(features: Features, *, tau: float, draws: StepRandomness) -> Features:
    """z + σ·ε with ε ~ N(0, I) and one σ ~ U(0, τ) per sample; unchanged for τ = 0."""
    if tau == 0:
        return features
    sigma = tau * draws.uniform("noise-level", features.tokens.device)
    noise = draws.normal_like(features.tokens, "noise")
    return Features(features.tokens + sigma.view(-1, 1, 1) * noise, features.grid)


@frozen(kw_only=True)
class Optimisation:
    """AdamW of a player, its gradients, and its learning rate as a function of the step.

    A player clears, measures and clips the gradients of what it trains, and nobody else's.

    Attributes:
        parameters: what the player trains, by role-prefixed name.
        optimiser: over them.
        config: its settings.
        length: the stage's lengths.
    """

    parameters: Mapping[str, nn.Parameter]
    optimiser: torch.optim.AdamW
    config: OptimiserConfig
    length: StageLength

    @classmethod
    def of(
        cls,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimiserConfig,
        length: StageLength,
    ) -> Optimisation:
        """AdamW over the parameters that a player trains."""
        named = dict(parameters)
        optimiser = torch.optim.AdamW(
            list(named.values()),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        return cls(parameters=named, optimiser=optimiser, config=config, length=length)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on with the moments of a saved state, and with the settings that there are now."""
        own = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": saved["state"], "param_groups": own})

    def clear(self) -> None:
        """Forget the gradients, and free their memory."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def norms(self) -> dict[str, float]:
        """Norm of the gradients per role; roles without any are left out."""
        found: dict[str, list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                found.setdefault(name.partition(".")[0], []).append(parameter.grad)
        return {role: float(nn.utils.get_total_norm(each)) for role, each in found.items()}

    def clip(self, norms: Mapping[str, float]) -> None:
        """Scale the gradients down to the norm that is wanted, if any.

        Args:
            norms: what ``norms`` gave.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.config.clip and gradients:
            total = math.hypot(*norms.values())
            torch._foreach_mul_(gradients, min(1.0, self.config.clip / (total + 1e-6)))

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate(
            step,
            base=self.config.learning_rate,
            final=self.config.final_learning_rate,
            warmup_steps=self.length.warmup,
            decay_steps=self.length.decay,
            shape=self.config.shape,
            warmup_from_zero=self.config.warmup_from_zero,
        )


def _decoded(model: RPiAE, features: Features, images: Tensor) -> Tensor:
    return model.decode_features(features, size=(images.shape[-2], images.shape[-1]))


def _trains(module: object) -> bool:
    assert isinstance(module, nn.Module)
    return any(parameter.requires_grad for parameter in module.parameters())

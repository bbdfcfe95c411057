"""The critic of a stage as a player: what it is shown, and what it learns.

The critic learns after the model, from the updated model's reconstructions, with an optimiser and a
schedule of its own. While the model learns from it, it is frozen and in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.config.recipe import AdversarialConfig
from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import AdversarialTerm, Critic
from rpiae.core.model.folding import fold
from rpiae.core.model.geometry import at_least_fp32, to_8_bits
from rpiae.core.runtime.draws import StepRandomness, key
from rpiae.core.training.balance import Pass, Value
from rpiae.core.training.player import MODEL, Inputs, Learned, MicroBatch, Player
from rpiae.core.training.restoring import check_player
from rpiae.core.training.task import Opening

#: Name of the player.
CRITIC = "critic"


class CriticLearner(nn.Module):
    """A critic whose forward pass computes its own loss.

    Args:
        critic: what is trained; its frozen parts have ``requires_grad`` off.
        term: the loss it plays against.
    """

    def __init__(self, critic: nn.Module, term: AdversarialTerm) -> None:
        super().__init__()
        self.critic = critic
        self._term = term

    def forward(
        self,
        step: int,
        images: Float[Tensor, "b 3 ..."],
        made: Float[Tensor, "b 3 ..."],
        draws: StepRandomness,
    ) -> Pass:
        """Its loss on augmented images and on augmented reconstructions, those rounded to 8 bits, and
        on the frames of clips.

        Told besides: ``accuracy``, the share of its logits that have the right sign, and ``real`` and
        ``made``, mean logits of images and of reconstructions.
        """
        frames = as_clip(images).shape[2]
        images, made = fold(as_clip(images)), fold(as_clip(made))
        size, draws = len(images), draws.of_frames(frames)
        shown = torch.cat(
            [
                self._term.augmented(images, draws, "critic-real"),
                self._term.augmented(to_8_bits(made), draws, "critic-made"),
            ]
        )
        logits = at_least_fp32(self.critic(shown))
        real, fake = logits[:size], logits[size:]
        accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return Pass(
            values=(Value(label="loss", value=self._term.critic_loss(real, fake)),),
            facts={
                "accuracy": accuracy, "real": real.detach().mean(), "made": fake.detach().mean(),
            },
        )  # fmt: skip


def critic_player(
    opening: Opening,
    config: AdversarialConfig,
    term: AdversarialTerm,
    *,
    reconstruct: Callable[[MicroBatch], Tensor],
) -> Player:
    """A fresh critic, or the one of a saved state, which then needs no pretrained weights.

    Args:
        opening: the stage.
        config: the loss's settings.
        term: the loss.
        reconstruct: gives reconstructions by the model as it stands, without noise, in eval mode.

    Raises:
        CheckpointError: if the saved critic is another one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(opening.seed, opening.stage.name, "critic"))
        critic = config.critic.build()
    assert isinstance(critic, nn.Module)
    assert isinstance(critic, Critic)
    learner = CriticLearner(critic, term)
    trained = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    optimiser = config.optimiser or opening.stage.optimiser
    length = opening.length_with(optimiser)
    saved = opening.saved
    if saved is None:
        config.critic.load_pretrained(critic)
    else:
        own = saved.state.get("players", {}).get(CRITIC)
        check_player(
            own, learner, list(trained.values()), name=CRITIC, steps=saved.state["step"],
            source=str(saved.path),
        )  # fmt: skip
        learner.load_state_dict(own["weights"])
    learner.to(opening.runtime.device)
    player = Player(
        name=CRITIC, module=learner, parameters=trained, config=optimiser, length=length,
        start=length.critic_start(config), modes=learner.train,
        inputs=_shown(config.critic_input == "shared", reconstruct),
    )  # fmt: skip
    if saved is not None:
        player.load_state_dict(saved.state["players"][CRITIC])
    return player


def _shown(shared: bool, reconstruct: Callable[[MicroBatch], Tensor]) -> Inputs:
    """What the critic learns from: reconstructions made for it, or those the model's loss was of."""

    def inputs(
        batches: Sequence[MicroBatch], earlier: Mapping[str, Learned]
    ) -> list[Callable[[], tuple[Any, ...]]]:
        def one(batch: MicroBatch, own: Tensor | None) -> tuple[Any, ...]:
            made = own if shared and own is not None else reconstruct(batch)
            return batch.inputs, made, batch.draws

        shown = earlier[MODEL].shown
        return [
            lambda batch=batch, own=own: one(batch, own)  # type: ignore[misc]  # bound as defaults
            for batch, own in zip(batches, shown, strict=True)
        ]

    return inputs


def without_draws(stage: Any) -> Any:
    """A stage's path as it is used: no noise, and the posterior's mode."""
    return evolve(stage, noise=0.0, posterior="mode")

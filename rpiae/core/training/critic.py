"""The critic of a stage as a player: what it is shown, what it learns, and when.

The critic learns after the model, from the updated model's reconstructions, with an optimiser and a
schedule of its own. While the model learns from it, it is frozen and in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from attrs import define, field
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.config.recipe import AdversarialConfig, OptimiserConfig, StageLength
from rpiae.core.model.contracts import AdversarialTerm, Critic
from rpiae.core.model.geometry import at_least_fp32, to_8_bits
from rpiae.core.runtime.draws import StepRandomness, key
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.checkpoint import SavedState
from rpiae.core.training.player import Optimisation
from rpiae.core.training.restoring import check_critic


class CriticScores(NamedTuple):
    """How a critic does on some images.

    Attributes:
        loss: what it learns from.
        accuracy: share of its logits that have the right sign.
        real, made: mean logits of images and of reconstructions.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    real: Float[Tensor, ""]
    made: Float[Tensor, ""]


class ShownImages(NamedTuple):
    """A part of a batch, as the critic learns from it.

    Attributes:
        images: (b, 3, s, s) in [0, 1].
        made: their reconstructions, the same shape; not clamped.
        draws: of this part's samples.
        share: of these images in the batch, times the number of processes.
    """

    images: Float[Tensor, "b 3 s s"]
    made: Float[Tensor, "b 3 s s"]
    draws: StepRandomness
    share: float


class CriticPlayer(nn.Module):
    """A critic whose forward computes its own loss.

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
        images: Float[Tensor, "b 3 s s"],
        made: Float[Tensor, "b 3 s s"],
        draws: StepRandomness,
    ) -> CriticScores:
        """Scores on augmented images and on augmented reconstructions, those rounded to 8 bits."""
        size = images.shape[0]
        shown = torch.cat(
            [
                self._term.augmented(images, draws, "critic-real"),
                self._term.augmented(to_8_bits(made), draws, "critic-made"),
            ]
        )
        logits = at_least_fp32(self.critic(shown))
        real, fake = logits[:size], logits[size:]
        accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return CriticScores(
            self._term.critic_loss(real, fake), accuracy, real.detach().mean(), fake.detach().mean()
        )


@define(kw_only=True)
class CriticTraining:
    """A stage's critic, its optimiser and how far it is.

    Attributes:
        critic: the module that the model's loss looks at.
        term: the model's side of the game.
        config: the loss's settings.
        start: first step of the stage in which the critic learns.
    """

    critic: nn.Module
    term: AdversarialTerm
    config: AdversarialConfig
    start: int
    _optimisation: Optimisation
    _player: Any = field(init=False)
    _optimiser: Any = field(init=False)

    @classmethod
    def open(
        cls,
        config: AdversarialConfig,
        term: AdversarialTerm,
        *,
        stage: str,
        seed: int,
        optimiser: OptimiserConfig,
        length: StageLength,
        device: torch.device,
        saved: SavedState | None = None,
    ) -> CriticTraining:
        """A fresh critic, or the one of a saved state, which then needs no pretrained weights.

        Args:
            config: the loss's settings.
            term: the loss.
            stage, seed: name the random initialisation.
            optimiser: the critic's.
            length: the stage's lengths with that optimiser; the critic counts them in its own steps.
            device: where.
            saved: a state of the stage, of which ``critic`` is what ``state_dict`` gave.

        Raises:
            CheckpointError: if the saved critic is another one.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(seed, stage, "critic"))
            critic = config.critic.build()
        assert isinstance(critic, nn.Module)
        assert isinstance(critic, Critic)
        trained = {f"critic.{n}": p for n, p in critic.named_parameters() if p.requires_grad}
        if saved is None:
            config.critic.load_pretrained(critic)
        else:
            check_critic(
                saved.state.get("critic"), critic, list(trained.values()),
                steps=saved.state["step"], source=str(saved.path),
            )  # fmt: skip
            critic.load_state_dict(saved.state["critic"]["critic"])
        critic.to(device)
        optimisation = Optimisation.of(trained.items(), optimiser, length)
        if saved is not None:
            optimisation.load_state_dict(saved.state["critic"]["optimiser"])
        return cls(
            critic=critic, term=term, config=config, start=length.critic_start(config),
            optimisation=optimisation,
        )  # fmt: skip

    def prepare(self, runtime: Runtime) -> None:
        """Wrap the critic for the run's processes."""
        self._unfreeze()  # a distributed wrapper listens to what is trained as it wraps
        player = CriticPlayer(self.critic, self.term)
        self._player, self._optimiser = runtime.prepare(player, self._optimisation.optimiser)

    def freeze(self) -> Critic:
        """The critic as the model sees it: gradients pass to the images and to nothing else."""
        for parameter in self._optimisation.parameters.values():
            parameter.requires_grad_(False)
        self.critic.eval()
        assert isinstance(self.critic, Critic)
        return self.critic

    def learn(
        self, step: int, parts: Iterable[Callable[[], ShownImages]], runtime: Runtime
    ) -> dict[str, float]:
        """One optimiser step on the parts of a batch; the scores over all processes.

        Args:
            step: the stage's step, at least ``start``.
            parts: give the batch, one after the other.
            runtime: where.
        """
        self._unfreeze()
        self.critic.train()
        rate = self._optimisation.learning_rate(step - self.start)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimisation.clear()
        scores = dict.fromkeys(CriticScores._fields, 0.0)
        waiting = list(parts)
        for number, part in enumerate(waiting, start=1):
            shown = part()
            with runtime.unsynchronised_if(self._player, number < len(waiting)):
                with runtime.autocast():
                    found = self._player(shown.images, shown.made, shown.draws)
                runtime.backward(shown.share * found.loss)
            for name, value in found._asdict().items():
                scores[name] += shown.share * value.item()
        norms = self._optimisation.norms()
        self._optimisation.clip(norms)
        self._optimiser.step()
        norm = math.hypot(*norms.values())
        return {**runtime.means(scores), "gradient_norm": norm, "learning_rate": rate}

    def clear(self) -> None:
        """Forget the critic's gradients, and free their memory."""
        self._optimisation.clear()

    def _unfreeze(self) -> None:
        for parameter in self._optimisation.parameters.values():
            parameter.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser, for a checkpoint."""
        return {
            "critic": self.critic.state_dict(),
            "optimiser": self._optimisation.optimiser.state_dict(),
        }

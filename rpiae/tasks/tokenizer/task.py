"""Training a tokenizer: encoder, bridge and decoder, against a frozen pivot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rpiae.core.config.recipe import AdversarialConfig, StageConfig
from rpiae.core.model.contracts import AdversarialTerm, BatchSource, Critic, Dataset, Replica
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.balance import Entry, Layer
from rpiae.core.training.objective import Objective
from rpiae.core.training.player import MicroBatch, Player
from rpiae.core.training.task import Opening, Passed, Task
from rpiae.tasks.tokenizer.critic import critic_player, without_draws
from rpiae.tasks.tokenizer.fitting import fit_bridge
from rpiae.tasks.tokenizer.path import entry, layers, stage_forward

#: Held-out metrics of a model as it stands, on a stage's path.
Evaluate = Callable[[RPiAE, StageConfig], Mapping[str, float]]


class TokenizerTask(Task):
    """A tokenizer in training.

    Args:
        model: starts as the run's initialisation.
        replica: the frozen pivot.
        evaluate: held-out metrics; all processes call it and get the same.

    Attributes:
        measure: gives held-out metrics.
        critic: what the terms play against in the stage at work, frozen.
    """

    def __init__(self, model: RPiAE, *, replica: Replica, evaluate: Evaluate) -> None:
        self.module = self.model = model
        self.replica = replica
        self.measure = evaluate
        self.critic: Critic | None = None

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        """The model's parts."""
        return self.model.roles

    def forward(self, stage: StageConfig, batch: MicroBatch, *, cut: bool) -> Passed:
        """Images along a stage's path; the reconstruction is shown."""
        context, meetings = stage_forward(
            self.model, batch.inputs, stage=stage, draws=batch.draws, replica=self.replica,
            critic=self.critic, cut=cut,
        )  # fmt: skip
        made = context.reconstruction
        return Passed(context, meetings, None if made is None else made.detach())

    def layers(self) -> Mapping[str, Layer]:
        """The last layers of encoder and decoder."""
        return layers(self.model)

    def entry(self, needs: frozenset[str]) -> Entry:
        """The features first, the reconstruction last."""
        return entry(needs)

    def players(self, opening: Opening, objective: Objective) -> Sequence[Player]:
        """The model, and the stage's critic where a term plays against one."""
        self.critic = None
        adversary = adversary_of(objective)
        if adversary is None:
            return [self.model_player(opening, objective)]
        config, term = adversary

        def reconstruct(batch: MicroBatch) -> Tensor:
            self.model.eval()
            with torch.no_grad(), opening.runtime.autocast():
                passed = self.forward(without_draws(opening.stage), batch, cut=False)
            assert passed.shown is not None
            return passed.shown  # type: ignore[no-any-return]  # the reconstruction

        critic = critic_player(opening, config, term, reconstruct=reconstruct)
        seen = critic.module.critic
        assert isinstance(seen, Critic)
        self.critic = seen
        return [self.model_player(opening, objective), critic]

    def before(
        self, stage: StageConfig | None, *, data: BatchSource, runtime: Runtime, seed: int
    ) -> Iterator[events.Notice]:
        """Fit the bridge, before the first stage that has it in its path or after the last."""
        if stage is None or stage.use_bridge:
            assert isinstance(data, Dataset)
            yield from fit_bridge(self.model, data, runtime, seed)

    def evaluate(self, stage: StageConfig, runtime: Runtime) -> Mapping[str, float]:
        """Held-out metrics."""
        return dict(self.measure(self.model, stage))

    def criterion(self, stage: StageConfig) -> str:
        """Where nothing is said, PSNR; against a critic the Fréchet distance over tokens of the pivot:
        PSNR prefers blur to detail, which is what a critic is there for."""
        against_critic = any(isinstance(term.loss, AdversarialConfig) for term in stage.terms)
        return stage.best or ("-pivot_rfd" if against_critic else "psnr")

    def remarks(self, metrics: Mapping[str, float]) -> Mapping[str, str]:
        """Channels that carry nothing."""
        dead = int(metrics.get("dead_channels", 0))
        if not dead:
            return {}
        return {
            "dead_channels": f"{dead} latent channels carry nothing on the held-out images: lower the "
            "weight of the KL term, or take a bridge with fewer channels"
        }

    def save(self, folder: Path) -> None:
        """As a tokenizer's folder."""
        save_tokenizer(self.model, folder)


def adversary_of(objective: Objective) -> tuple[AdversarialConfig, AdversarialTerm] | None:
    """The term that plays against a critic, with its settings."""
    for _, config, term in objective.terms:
        if isinstance(config.loss, AdversarialConfig):
            assert isinstance(term, AdversarialTerm)
            return config.loss, term
    return None

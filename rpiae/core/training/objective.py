"""The weighted loss terms of a stage, and the pivot's frozen replica."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.config.parts import Alarm
from rpiae.core.config.recipe import AdaptiveConfig, AdversarialConfig, StageLength, TermConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.clips import Prepare, as_clip, clip_blocks, clip_features
from rpiae.core.model.contracts import (
    AdversarialTerm,
    BlockFeatures,
    Encoder,
    Features,
    StepContext,
    Term,
)
from rpiae.core.model.geometry import Geometry, Patch, encoder_view, geometry
from rpiae.core.training.adaptive import Junction, Pending, Reduce, adaptive_ratio, unreduced
from rpiae.core.training.schedules import term_weight


@frozen(kw_only=True)
class Outcome:
    """Result of an objective for one part of a batch.

    Attributes:
        total: what is back-propagated at once, scaled by the part's share in the batch.
        terms: raw value of every active term by label.
        fixed: weights that are known before the backward pass, by label.
        junction: label and junction of a term that is weighed in the backward pass.
        pending: adaptive terms that wait for the rest of the batch.
        reconstruction: x̂, detached.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    junction: tuple[str, Junction] | None
    pending: Mapping[str, Pending]
    reconstruction: Tensor | None

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights by label, complete but for pending terms after the backward pass."""
        if self.junction is None:
            return dict(self.fixed)
        label, junction = self.junction
        return {**self.fixed, label: junction.found}


@frozen(kw_only=True)
class _Active:
    """A term that takes part in a step."""

    label: str
    config: TermConfig
    term: Term
    weight: float
    adaptive: AdaptiveConfig | None


class Objective:
    """The loss terms of one stage.

    Args:
        terms: their configs.
        length: the stage's lengths, for starts and ramps.
        layers: what adaptive ratios refer to, as ``adaptive_layers`` gives it.
        reduce: averages a gradient over processes before its norm is taken.
        device: where terms with weights of their own are put.

    Raises:
        UsageError: if an adaptive weight refers to a layer that the stage does not train.
    """

    def __init__(
        self,
        terms: Sequence[TermConfig],
        *,
        length: StageLength,
        layers: Mapping[str, nn.Parameter],
        reduce: Reduce = unreduced,
        device: torch.device | str = "cpu",
    ) -> None:
        self._length = length
        self._layers = layers
        self._reduce = reduce
        self._terms: list[tuple[str, TermConfig, Term]] = []
        for config in terms:
            taken = [label for label, _, _ in self._terms]
            label, number = config.loss.label, 2
            while label in taken:
                label, number = f"{config.loss.label}-{number}", number + 1
            if config.adaptive and not layers[config.adaptive.layer].requires_grad:
                raise UsageError(
                    f"the adaptive weight of {label!r} refers to the {config.adaptive.role}'s last "
                    "layer, which this stage does not train: remove `adaptive` from the term, or "
                    f"train the {config.adaptive.role}"
                )
            term = config.loss.build()
            if isinstance(term, nn.Module):
                term.to(device).requires_grad_(False).eval()
            self._terms.append((label, config, term))

    @property
    def alarms(self) -> dict[str, Alarm]:
        """What the terms want to be listened to for, by label."""
        return {label: config.loss.alarm for label, config, _ in self._terms if config.loss.alarm}

    @property
    def adversary(self) -> tuple[AdversarialConfig, AdversarialTerm] | None:
        """The term that plays against a critic, with its settings."""
        for _, config, term in self._terms:
            if isinstance(config.loss, AdversarialConfig):
                assert isinstance(term, AdversarialTerm)
                return config.loss, term
        return None

    def junction(self, step: int) -> tuple[str, Junction] | None:
        """A junction at the encoder's output, where one can weigh what this step has to weigh.

        It can where one term is weighed, at the encoder, which looks at the features alone, and all
        others are reference terms that look at something else.
        """
        active = self._active(step)
        weighed = [a for a in active if a.adaptive]
        rest = [a for a in active if not a.adaptive]
        if len(weighed) != 1 or weighed[0].adaptive is None:
            return None
        found, adaptive = weighed[0], weighed[0].adaptive
        if adaptive.role != "encoder" or not found.config.loss.needs <= {"features", "replica"}:
            return None
        if not all(a.config.reference and "features" not in a.config.loss.needs for a in rest):
            return None
        return found.label, Junction(
            layer=self._layers[adaptive.layer], weight=found.weight,
            eps=adaptive.eps, maximum=adaptive.maximum, reduce=self._reduce,
        )  # fmt: skip

    def __call__(
        self,
        context: StepContext,
        step: int,
        *,
        share: float = 1.0,
        whole: bool = True,
        junction: tuple[str, Junction] | None = None,
    ) -> Outcome:
        """All active terms of a step, in fp32.

        Args:
            context: the forward pass.
            step: optimiser step of the stage.
            share: of these images in the batch, times the number of processes.
            whole: whether this process's images of the step are all here; else adaptive terms are
                left pending.
            junction: what ``junction`` gave, where the context's features come from it.
        """
        active = self._active(step)
        values = {a.label: a.term(context).float() for a in active}
        references = [values[a.label] * a.weight for a in active if a.config.reference]
        # A stage may open with no active term (all of them start later): its total is then zero.
        total = context.images.new_zeros(())
        fixed, pending = {}, {}
        for a in active:
            value, adaptive = values[a.label], a.adaptive
            if junction is not None and a.label == junction[0]:
                total = total + value
            elif adaptive is None:
                fixed[a.label] = torch.as_tensor(a.weight, device=value.device)
                total = total + a.weight * value
            elif whole:
                ratio = adaptive_ratio(
                    share * torch.stack(references).sum(), share * value,
                    self._layers[adaptive.layer],
                    eps=adaptive.eps, maximum=adaptive.maximum, reduce=self._reduce,
                )  # fmt: skip
                fixed[a.label] = a.weight * ratio
                total = total + fixed[a.label] * value
            else:
                pending[a.label] = Pending(
                    value=share * value, reference=share * torch.stack(references).sum(),
                    layer=self._layers[adaptive.layer], weight=a.weight,
                    eps=adaptive.eps, maximum=adaptive.maximum,
                )  # fmt: skip
        return Outcome(
            total=share * total,
            terms={label: value.detach() for label, value in values.items()},
            fixed=fixed,
            junction=junction,
            pending=pending,
            reconstruction=None
            if context.reconstruction is None
            else context.reconstruction.detach(),
        )

    def _active(self, step: int) -> list[_Active]:
        """Terms that take part in a step; ``adaptive`` is None where the plain weight holds."""
        started = [t for t in self._terms if step >= self._length.start(t[1])]
        referred = any(config.reference for _, config, _ in started)
        return [
            _Active(
                label=label,
                config=config,
                term=term,
                weight=self._scheduled(config, step),
                adaptive=config.adaptive
                if config.adaptive and referred and step >= self._warmup(config.adaptive)
                else None,
            )
            for label, config, term in started
        ]

    def _scheduled(self, config: TermConfig, step: int) -> float:
        ramp = round(config.ramp_steps * self._length.scale)
        start = self._length.start(config)
        return term_weight(step, weight=config.weight, start=start, ramp=ramp)

    def _warmup(self, adaptive: AdaptiveConfig) -> int:
        return round(adaptive.warmup_steps * self._length.scale)


class PivotReplica:
    """The frozen copy of the pivot (PRE): no gradients of its own, always in eval mode.

    Args:
        encoder: an encoder of the same architecture that holds the pivot's weights.
        output_patch: the tokenizer's output patch q, for the geometry.
        downsampling: its bridge's, for the same.
    """

    def __init__(
        self, encoder: nn.Module, *, output_patch: int | Patch, downsampling: int = 1
    ) -> None:
        assert isinstance(encoder, Encoder)
        encoder.requires_grad_(False).eval()
        self._encoder: Encoder = encoder
        self._output_patch = output_patch
        self._downsampling = downsampling
        weight = next(encoder.parameters())
        device, self._dtype = weight.device, weight.dtype
        self._mean = torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(encoder.std, device=device).view(1, 3, 1, 1)

    @property
    def num_blocks(self) -> int:
        """Blocks that ``blocks`` can be asked for."""
        return self._encoder.num_blocks

    def features(self, images: Float[Tensor, "b 3 ..."]) -> Features:
        """Tokens of images or clips of any size in [0, 1], on the tokenizer's grid."""
        return clip_features(self._encoder, *self._seen(images))

    def blocks(self, images: Float[Tensor, "b 3 ..."], indices: Sequence[int]) -> BlockFeatures:
        """Block outputs for images or clips of any size in [0, 1]."""
        return clip_blocks(self._encoder, *self._seen(images), indices)

    def _seen(self, images: Tensor) -> tuple[Tensor, Geometry, Prepare]:
        """Images as clips, their geometry, and what is done to every frame."""
        plan = geometry(
            images.shape[2:], patch=self._encoder.patch, output_patch=self._output_patch,
            downsampling=self._downsampling,
        )  # fmt: skip

        def prepare(frames: Tensor) -> Tensor:
            return ((encoder_view(frames, plan) - self._mean) / self._std).to(self._dtype)

        return as_clip(images), plan, prepare

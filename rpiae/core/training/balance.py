"""Adaptive weights: a term weighted by a ratio of gradient norms at one layer.

The ratio is ‖∇ references‖ / (‖∇ term‖ + eps), both taken at the weight of one layer, of the whole
batch over all processes. A forward pass is cut at its *meetings*: the tensors that all that a weighed
layer does to the losses goes through. There the gradients of single terms are at hand before they are
added up, and a layer's gradient follows from the gradient at its meeting alone (dyᵀx for a linear
layer), without a pass through the rest of the network.

* A batch that is there as a whole is weighed within its own backward pass. That costs the gradients of
  the layers, and, where terms are weighed behind a segment that carries more than references, one more
  pass through that segment.
* A batch that is accumulated is weighed first, by a pass of its own over all micro-batches, and then
  learned from with fixed weights.

Source: λ_piv and the GAN weight of arXiv 2603.19206; VQGAN (arXiv 2012.09841).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from attrs import define, field, frozen
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.config.recipe import AdaptiveConfig

#: Averages a tensor over processes.
Reduce = Callable[[Tensor], Tensor]

#: Where a term's gradient enters: at one meeting alone, or anywhere.
Entry = Literal["first", "last", "anywhere"]


class Meeting(NamedTuple):
    """A tensor of a forward pass at which the graph is cut.

    Attributes:
        output: the tensor, with the graph that led to it.
        cut: the same values, which the pass went on from.
    """

    output: Tensor
    cut: Tensor

    @classmethod
    def at(cls, output: Tensor) -> Meeting:
        """Cut here."""
        return cls(output, output.detach().requires_grad_())


class Meetings(NamedTuple):
    """The two places at which a forward pass is cut; None where nothing trained lies before them.

    Attributes:
        first: such as an encoder's features.
        last: such as a reconstruction.
    """

    first: Meeting | None = None
    last: Meeting | None = None


@frozen(kw_only=True)
class Layer:
    """A weight that ratios refer to.

    Attributes:
        meeting: which meeting all its influence goes through.
        weight: the parameter.
    """

    meeting: Literal["first", "last"]
    weight: nn.Parameter


@frozen(kw_only=True)
class Value:
    """A loss term of one forward pass.

    Attributes:
        label: its name.
        value: the raw value, a scalar.
        weight: its weight, or the factor on its ratio.
        reference: whether ratios have it in their numerator.
        adaptive: how its ratio is taken; None for a plain weight.
        entry: where its gradient enters.
    """

    label: str
    value: Float[Tensor, ""]
    weight: float = 1.0
    reference: bool = False
    adaptive: AdaptiveConfig | None = None
    entry: Entry = "anywhere"


@frozen(kw_only=True)
class Pass:
    """What came of a player's forward pass over one micro-batch.

    Attributes:
        values: the terms.
        meetings: where the graph was cut.
        shown: what other players may look at, detached.
        facts: further scalars that are told.
    """

    values: tuple[Value, ...]
    meetings: Meetings = field(factory=Meetings)
    shown: Any = None
    facts: Mapping[str, Tensor] = field(factory=dict)


@define(kw_only=True)
class _Gradients:
    """Gradients of a layer, added up over micro-batches; None where it took no part yet."""

    reference: Tensor | None = None
    term: Tensor | None = None


class Balance:
    """Weighs the terms of a player and takes its backward passes.

    Args:
        layers: what ``AdaptiveConfig.layer`` can name.
        reduce: averages a tensor over processes.
    """

    def __init__(
        self, layers: Mapping[str, Layer] | None = None, *, reduce: Reduce = lambda tensor: tensor
    ) -> None:
        self._layers = layers or {}
        self._reduce = reduce
        self._ratios: dict[str, Tensor] = {}
        self._sums: dict[str, _Gradients] = {}

    def backward(self, passed: Pass, *, share: float, weigh: bool) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch to those of the parameters.

        Args:
            passed: its forward pass.
            share: of it in the batch, times the number of processes; scales all terms.
            weigh: whether ratios are taken now, of this micro-batch alone; else those hold that were
                taken before.

        Returns:
            The weights, by label.
        """
        flow = _Flow(passed, share)
        weighed = [v for v in passed.values if v.adaptive is not None] if weigh else []
        late = [v for v in weighed if self._waits(v)]
        late_labels = {v.label for v in late}
        for value in weighed:
            if value.label not in late_labels:
                self._add(value, flow)
                self._settle(value)
        weights = {v.label: self._weight(v) for v in passed.values if v.label not in late_labels}
        alone = {v.label: flow.at("first", {v.label: 1.0}) for v in late}
        references = None
        if late and not all(v.reference for v in passed.values if v.label not in late_labels):
            references = flow.at("first", _references(passed.values))
        gradient = flow.backward(weights)
        for value in late:
            own = alone[value.label]
            self._add(value, flow, at_meeting=(gradient if references is None else references, own))
            self._settle(value)
            weights[value.label] = self._weight(value)
            if own is not None:
                extra = weights[value.label] * own
                gradient = extra if gradient is None else gradient + extra
        flow.finish(gradient)
        return weights

    def measure(self, passed: Pass, *, share: float) -> None:
        """Take in the layers' gradients of one micro-batch; parameters get none."""
        flow = _Flow(passed, share)
        for value in passed.values:
            if value.adaptive is not None:
                self._add(value, flow)

    def settle(self, values: Iterable[Value]) -> None:
        """Take the ratios of all that was measured, in the order in which ``backward`` does: other
        processes may be in there."""
        weighed = [value for value in values if value.adaptive is not None]
        for value in sorted(weighed, key=self._waits):
            self._settle(value)

    def due(self, weighed: Mapping[str, AdaptiveConfig], step: int) -> bool:
        """Whether ratios are taken in a step: in every one, or every ``refresh_every`` of them.

        Args:
            weighed: the terms that have an adaptive weight in this step, by label.
            step: of the stage.
        """
        return any(
            label not in self._ratios or step % adaptive.refresh_every == 0
            for label, adaptive in weighed.items()
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The ratios that hold until the next are taken."""
        return {label: ratio.detach().cpu() for label, ratio in self._ratios.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Go on with saved ratios."""
        self._ratios = dict(saved)

    def _waits(self, value: Value) -> bool:
        """Whether a term can be weighed after the last segment: it enters where it is weighed."""
        assert value.adaptive is not None
        return value.entry == "first" and self._layers[value.adaptive.layer].meeting == "first"

    def _weight(self, value: Value) -> Tensor:
        device = value.value.device
        if value.adaptive is None:
            return torch.as_tensor(value.weight, device=device)
        return value.weight * self._ratios[value.label].to(device)

    def _add(
        self,
        value: Value,
        flow: _Flow,
        *,
        at_meeting: tuple[Tensor | None, Tensor | None] | None = None,
    ) -> None:
        """Take in the gradients at a term's layer."""
        assert value.adaptive is not None
        layer = self._layers[value.adaptive.layer]
        if at_meeting is None:
            at_meeting = (
                flow.at(layer.meeting, _references(flow.values)),
                flow.at(layer.meeting, {value.label: 1.0}),
            )
        references, own = (flow.of_layer(layer, gradient) for gradient in at_meeting)
        sums = self._sums.setdefault(value.label, _Gradients())
        sums.reference = _sum([sums.reference, references])
        sums.term = _sum([sums.term, own])

    def _settle(self, value: Value) -> None:
        """The ratio of what was added up; zero where the layer takes no part in one of both."""
        assert value.adaptive is not None
        sums = self._sums.pop(value.label)
        if sums.reference is None or sums.term is None:
            self._ratios[value.label] = torch.zeros_like(value.value)
            return
        reference, term = (self._reduce(g).norm() for g in (sums.reference, sums.term))
        ratio = reference / (term + value.adaptive.eps)
        self._ratios[value.label] = ratio.clamp(0, value.adaptive.maximum)


class _Flow:
    """Gradients of a forward pass on their way back, for any weights of its terms.

    Args:
        passed: the pass.
        share: scales all terms.
    """

    def __init__(self, passed: Pass, share: float) -> None:
        self.values = passed.values
        self._first, self._last = passed.meetings
        self._scaled = {v.label: share * v.value for v in passed.values if v.value.requires_grad}
        self._entering = {v.label: self._enter(v) for v in passed.values} if self._last else {}

    def at(
        self, meeting: Literal["first", "last"], weights: Mapping[str, float | Tensor]
    ) -> Tensor | None:
        """Gradient of weighted terms at a meeting; nothing else learns of it.

        Args:
            meeting: where.
            weights: by label; terms that are not in it do not count.
        """
        entering = self._entered(weights)
        if meeting == "last":
            return entering
        if self._first is None:
            return None
        roots, gradients = self._roots(weights, entering)
        if not roots:
            return None
        (found,) = torch.autograd.grad(
            roots, self._first.cut, gradients, retain_graph=True, allow_unused=True
        )
        return found

    def backward(self, weights: Mapping[str, float | Tensor]) -> Tensor | None:
        """Give all parameters behind the first meeting their gradients; that at the meeting itself."""
        roots, gradients = self._roots(weights, self._entered(weights))
        if roots:
            torch.autograd.backward(roots, gradients)
        return None if self._first is None else self._first.cut.grad

    def finish(self, gradient: Tensor | None) -> None:
        """Give the parameters before the first meeting their gradients."""
        if self._first is not None and gradient is not None:
            torch.autograd.backward([self._first.output], [gradient])

    def of_layer(self, layer: Layer, gradient: Tensor | None) -> Tensor | None:
        """Gradient of a layer's weight out of that at its meeting, in fp32."""
        meeting = self._first if layer.meeting == "first" else self._last
        if meeting is None or gradient is None:
            return None
        (found,) = torch.autograd.grad(
            meeting.output, layer.weight, gradient, retain_graph=True, allow_unused=True
        )
        return None if found is None else found.float()

    def _entered(self, weights: Mapping[str, float | Tensor]) -> Tensor | None:
        """Gradient of weighted terms at the last meeting."""
        return _sum(
            weights[label] * gradient
            for label, gradient in self._entering.items()
            if label in weights and gradient is not None
        )

    def _enter(self, value: Value) -> Tensor | None:
        """A term's own gradient at the last meeting."""
        if value.entry == "first" or value.label not in self._scaled:
            return None
        assert self._last is not None
        (found,) = torch.autograd.grad(
            self._scaled[value.label], self._last.cut, retain_graph=True, allow_unused=True
        )
        return found

    def _roots(
        self, weights: Mapping[str, float | Tensor], entering: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """What a pass to the first meeting starts from: the last one, and terms that enter behind it."""
        others = _sum(
            weights[v.label] * self._scaled[v.label]
            for v in self.values
            if v.label in weights
            and v.label in self._scaled
            and (self._last is None or v.entry != "last")
        )
        roots: list[Tensor] = []
        gradients: list[Tensor | None] = []
        if self._last is not None and entering is not None:
            roots.append(self._last.output)
            gradients.append(entering)
        if others is not None:
            roots.append(others)
            gradients.append(None)
        return roots, gradients


def _references(values: Iterable[Value]) -> dict[str, float | Tensor]:
    return {v.label: v.weight for v in values if v.reference}


def _sum(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """The sum of those that are there; None of nothing."""
    total: Tensor | None = None
    for tensor in tensors:
        if tensor is not None:
            total = tensor if total is None else total + tensor
    return total

"""Adaptive weights, against the ratio as it is defined: gradients of whole losses at one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rpiae.core.config.recipe import stage_length
from rpiae.core.model.blocks import recomputing
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.training import events
from rpiae.core.training.balance import Balance, Pass
from rpiae.core.training.freeze import apply_stage, trained_parameters
from rpiae.core.training.objective import Objective
from rpiae.core.training.player import MicroBatch
from rpiae.core.training.task import Trainee, TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.tasks.tokenizer.task import adversary_of
from tests.toys import CRITICS, toy_run

L1 = {"loss": "l1", "reference": True}
MSE = {"loss": "mse", "weight": 0.5}
PIVOT = {"loss": "pivot", "weight": 0.3, "adaptive": {"layer": "encoder"}}
LAST = {"loss": "pivot", "weight": 0.3, "adaptive": {"layer": "encoder-last"}}
GAME = {
    "loss": {"name": "adversarial", "critic": CRITICS["patch"]},
    "weight": 0.75,
    "adaptive": {"layer": "decoder", "eps": 1e-6},
}
FEATURE = {"loss": "feature", "reference": True}
STAGES = {
    "pivot": ([L1, PIVOT], False),
    "pivot at the last parameter": ([L1, LAST], False),
    "critic": ([L1, GAME], False),
    "both": ([L1, PIVOT, GAME], False),
    "both beside a fixed term": ([L1, MSE, PIVOT, GAME], False),
    "a critic weighed at the encoder": (
        [L1, GAME | {"adaptive": {"layer": "encoder", "eps": 1e-6}}], False,
    ),
    "through the bridge": ([L1, PIVOT, GAME, {"loss": "kl", "weight": 1e-3}], True),
    "a reference on the way": ([L1, FEATURE, PIVOT, GAME], True),
    "an adaptive term on the way": (
        [L1, {"loss": "feature", "weight": 0.2, "adaptive": {"layer": "encoder"}}, GAME], True,
    ),
    "clamped": ([L1, PIVOT | {"adaptive": {"layer": "encoder", "maximum": 1e-3}}], False),
}  # fmt: skip


class Step:
    """One step of a toy stage, taken apart."""

    def __init__(
        self, folder: Path, terms: list[dict[str, Any]], *, use_bridge: bool, encoder: str = "vit"
    ) -> None:
        stage = {
            "name": "one", "train": ["encoder", "bridge", "decoder"] if use_bridge else ["encoder", "decoder"],
            "use_bridge": use_bridge, "steps": 4, "noise": 0.2, "terms": terms,
        }  # fmt: skip
        self.inputs = toy_run(folder, encoder, "vb4", "vit", {"name": "toy", "stages": [stage]})
        self.stage = self.inputs.recipe.stages[0]
        self.task = self.inputs.task
        with torch.no_grad():
            for parameter in self.task.model.encoder.parameters():  # away from the pivot
                generator = torch.Generator().manual_seed(parameter.numel())
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        apply_stage(self.task.roles, self.stage.train)
        self.objective = Objective(
            self.stage.terms, length=stage_length(self.stage, self.inputs.recipe, 8),
            layers=self.task.layers(), entry=self.task.entry,
        )  # fmt: skip
        if (adversary := adversary_of(self.objective)) is not None:
            torch.manual_seed(0)
            self.task.critic = adversary[0].critic.build().requires_grad_(False).eval()
        self.images = self.inputs.data.crops(8, seed=0)

    def passed(self, samples: range, *, cut: bool = True) -> Pass:
        draws = StepRandomness(0, "one", 0, samples)
        batch = MicroBatch(self.images[list(samples)], draws, len(samples) / 8)
        if cut:
            return Trainee(self.task, self.stage, self.objective)(0, batch)
        context = self.task.forward(self.stage, batch, cut=False).context
        return Pass(values=self.objective(context, 0))

    def gradients(self) -> dict[str, Tensor]:
        found = {
            name: parameter.grad.clone()
            for name, parameter in trained_parameters(self.task.roles)
            if parameter.grad is not None and parameter.grad.any()
        }
        self.task.module.zero_grad()
        return found

    def by_definition(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and gradients: every ratio from two backward passes to its layer."""
        values = self.passed(range(8), cut=False).values
        references = sum(v.weight * v.value for v in values if v.reference)
        weights = {}
        for v in values:
            weights[v.label] = torch.tensor(v.weight)
            if v.adaptive is not None:
                layer = self.task.layers()[v.adaptive.layer].weight
                over, under = (
                    torch.autograd.grad(loss, layer, retain_graph=True)[0].norm()
                    for loss in (references, v.value)
                )
                ratio = over / (under + v.adaptive.eps)
                weights[v.label] = v.weight * ratio.clamp(0, v.adaptive.maximum)
        sum(weights[v.label] * v.value for v in values).backward()
        return weights, self.gradients()

    def whole(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        passed = self.passed(range(8))
        weights = Balance(self.task.layers()).backward(passed, share=1.0, weigh=True)
        return weights, self.gradients()

    def accumulated(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        balance = Balance(self.task.layers())
        parts = (range(3), range(3, 7), range(7, 8))
        for samples in parts:
            balance.measure(passed := self.passed(samples), share=len(samples) / 8)
        balance.settle(passed.values)
        assert not self.gradients(), "measuring leaves no gradients"
        for samples in parts:
            weights = balance.backward(self.passed(samples), share=len(samples) / 8, weigh=False)
        return weights, self.gradients()


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    weights, gradients = one
    other_weights, others = other
    assert weights.keys() == other_weights.keys()
    for label, weight in weights.items():
        torch.testing.assert_close(weight, other_weights[label], rtol=2e-5, atol=0, msg=label)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=2e-6 * scale, msg=name)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", ["whole", "recomputed", "accumulated"])
def test_weights_and_gradients_are_those_of_the_definition(
    tmp_path: Path, stage: str, way: str
) -> None:
    terms, use_bridge = STAGES[stage]
    step = Step(tmp_path, terms, use_bridge=use_bridge)
    expected = step.by_definition()
    assert any(w > 0 for w in expected[0].values())
    with recomputing(way == "recomputed"):
        assert_same(step.accumulated() if way == "accumulated" else step.whole(), expected)


@pytest.mark.parametrize("encoder", ["timm", "timm-layers"])
def test_with_other_encoders(tmp_path: Path, encoder: str) -> None:
    step = Step(tmp_path, [L1, PIVOT], use_bridge=False, encoder=encoder)
    expected = step.by_definition()
    assert_same(step.whole(), expected)
    assert_same(step.accumulated(), expected)


def test_a_layer_that_takes_no_part_gives_no_weight(tmp_path: Path) -> None:
    step = Step(tmp_path, [L1, PIVOT | {"adaptive": {"layer": "decoder"}}], use_bridge=False)
    weights, _ = step.whole()
    assert weights["pivot"] == 0


def run(folder: Path, *overrides: str, refresh: int = 1) -> TrainerInputs:
    adaptive = f"recipe.stages[0].terms[1].adaptive={{layer='encoder', refresh_every={refresh}}}"
    return toy_run(
        folder, "vit", "vb4", "vit", "quick", adaptive, "recipe.max_steps=6",
        "recipe.batch_size=5", *overrides,
    )  # fmt: skip


def first_stage(inputs: TrainerInputs, *, resume: bool = False) -> list[events.StepDone]:
    done = [e for e in train(inputs, resume=resume) if isinstance(e, events.StepDone)]
    return [e for e in done if e.stage == done[0].stage]


def test_accumulation_gives_the_same_curve(tmp_path: Path) -> None:
    one, two = (first_stage(run(tmp_path / str(n), f"recipe.accumulate={n}")) for n in (1, 2))
    for whole, parts in zip(one, two, strict=True):
        assert whole.total == pytest.approx(parts.total, abs=1e-4)
        assert whole.weights == pytest.approx(parts.weights, rel=1e-3)


def test_a_ratio_holds_until_it_is_taken_again(tmp_path: Path) -> None:
    weights = [e.weights["pivot"] for e in first_stage(run(tmp_path, refresh=3))]
    assert weights[0] == weights[1] == weights[2]
    assert weights[3] == weights[4] == weights[5]
    assert weights[2] != weights[3]


def test_a_ratio_that_holds_is_resumed(tmp_path: Path) -> None:
    every = "recipe.checkpoint_every=1"
    whole = first_stage(run(tmp_path / "whole", every, refresh=4))
    happened = train(run(tmp_path / "half", every, refresh=4))
    for event in happened:
        if isinstance(event, events.CheckpointSaved) and event.step == 2:
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    again = first_stage(run(tmp_path / "half", every, refresh=4), resume=True)
    assert [(e.step, e.total, e.weights) for e in again] == [
        (e.step, e.total, e.weights) for e in whole[2:]
    ]


@pytest.mark.parametrize("encoder", ["vit", "timm"])
def test_recomputed_activations_give_the_same_curve(tmp_path: Path, encoder: str) -> None:
    curves = []
    for recompute in ("false", "true"):
        inputs = toy_run(
            tmp_path / recompute, encoder, "vb4", "vit", "quick", "recipe.max_steps=4",
            "recipe.stages[0].terms[1].adaptive={layer='encoder'}", "recipe.batch_size=4",
            f"recipe.recompute={recompute}",
        )  # fmt: skip
        curves.append([e.total for e in train(inputs) if isinstance(e, events.StepDone)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_recomputing_keeps_less(tmp_path: Path) -> None:
    kept = {}
    for recompute in ("false", "true"):
        inputs = toy_run(
            tmp_path / recompute, "vit", "vb4", "vit", "quick", f"recipe.recompute={recompute}"
        )
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        happened = train(inputs)
        next(happened)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            next(happened)
        happened.close()
        kept[recompute] = sum(sizes)
    assert kept["true"] < 0.8 * kept["false"]

"""Three ways to an adaptive weight, one number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attrs import evolve
from torch import Tensor

from rpiae.core.config.recipe import TermConfig, stage_length
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.training import events
from rpiae.core.training.adaptive import SeparateGradients
from rpiae.core.training.freeze import apply_stage, trained_parameters
from rpiae.core.training.objective import Objective
from rpiae.core.training.player import ModelPlayer
from rpiae.core.training.trainer import TrainerInputs, train
from rpiae.losses.configs import FeatureLossConfig, MseLossConfig
from tests.toys import toy_run

ADAPTIVE = "recipe.stages[0].terms[1].adaptive={layer='encoder'}"


def step(inputs: TrainerInputs, way: str) -> tuple[float, dict[str, Tensor]]:
    """Pivot weight and gradients of one Stage I step."""
    model, stage = inputs.model, inputs.recipe.stages[0]
    apply_stage(model.roles, stage.train)
    model.zero_grad()
    objective = Objective(
        stage.terms,
        length=stage_length(stage, inputs.recipe, 8),
        layers={"encoder": model.encoder.last_weight, "decoder": model.decoder.last_weight},
    )
    assert objective.junction(0) is not None
    player = ModelPlayer(model, stage=stage, objective=objective, replica=inputs.replica)
    if way == "before":
        objective.junction = lambda _: None  # type: ignore[method-assign]
    apart = SeparateGradients([p for _, p in trained_parameters(model.roles)])
    images = inputs.data.crops(8, seed=0)
    sizes = (3, 4, 1) if way == "parts" else (8,)
    weights = {}
    for part, samples in zip(images.split(sizes), torch.arange(8).split(sizes), strict=True):
        draws = StepRandomness(0, stage.name, 0, samples.tolist())
        outcome = player(part, draws, 0, share=len(part) / 8, whole=way != "parts")
        apart.add(outcome.pending)
        outcome.total.backward()
        weights = outcome.weights
    weights |= apart.settle()
    found = {n: p.grad.clone() for n, p in trained_parameters(model.roles) if p.grad is not None}
    return weights["pivot"].item(), found


@pytest.mark.parametrize("encoder", ["vit", "timm", "timm-layers"])
@pytest.mark.parametrize("way", ["before", "parts"])
def test_ways_agree(tmp_path: Path, encoder: str, way: str) -> None:
    inputs = toy_run(tmp_path, encoder, "vb4", "vit", "quick", ADAPTIVE)
    with torch.no_grad():
        for parameter in inputs.model.encoder.parameters():  # away from the pivot, where it is zero
            parameter += 0.02 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    weight, gradients = step(inputs, "junction")
    other_weight, others = step(inputs, way)
    assert weight > 0
    assert weight == pytest.approx(other_weight, rel=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-7, msg=name)


def test_a_junction_is_used_only_where_it_is_exact(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "quick", ADAPTIVE)
    apply_stage(inputs.model.roles, ("encoder", "decoder"))
    layers = {"encoder": inputs.model.encoder.last_weight}
    stage = inputs.recipe.stages[0]
    length = stage_length(stage, inputs.recipe, 8)

    def junction(*terms: TermConfig) -> object:
        return Objective(terms, length=length, layers=layers).junction(0)

    l1, pivot = stage.terms
    assert junction(l1, pivot)
    assert junction(l1, evolve(pivot, adaptive=None)) is None
    # What is no reference must not be in the gradient that the ratio is taken of.
    mse = TermConfig(loss=MseLossConfig(name="mse"))
    assert junction(l1, pivot, mse) is None
    assert junction(l1, pivot, evolve(mse, reference=True))
    # A term that reaches more than the encoder cannot be weighed at its output.
    feature = TermConfig(loss=FeatureLossConfig(name="feature"), adaptive=pivot.adaptive)
    assert junction(l1, feature) is None


def test_accumulation_gives_the_same_curve_with_an_adaptive_weight(tmp_path: Path) -> None:
    short = (ADAPTIVE, "recipe.max_steps=6", "recipe.batch_size=5")
    curves = []
    for parts in (1, 2):
        inputs = toy_run(
            tmp_path / str(parts), "vit", "vb4", "vit", "quick", *short,
            f"recipe.accumulate={parts}",
        )  # fmt: skip
        curves.append([e for e in train(inputs) if isinstance(e, events.StepDone)])
    for one, two in zip(*curves, strict=True):
        assert one.total == pytest.approx(two.total, abs=1e-4)
        assert one.weights == pytest.approx(two.weights, rel=1e-3)


@pytest.mark.parametrize("encoder", ["vit", "timm"])
def test_recomputed_activations_give_the_same_curve(tmp_path: Path, encoder: str) -> None:
    short = (ADAPTIVE, "recipe.max_steps=4", "recipe.batch_size=4")
    curves = []
    for recompute in ("false", "true"):
        inputs = toy_run(
            tmp_path / recompute, encoder, "vb4", "vit", "quick", *short,
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

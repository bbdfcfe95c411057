"""Which gradients reach what (method.md, "gradient paths")."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attrs import evolve
from torch import Tensor

from rpiae.core.config.recipe import StageConfig, TermConfig, stage_length
from rpiae.core.model.contracts import StageSteps
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.training.balance import Balance
from rpiae.core.training.freeze import apply_stage, trained_parameters
from rpiae.core.training.objective import Objective
from rpiae.core.training.player import MicroBatch
from rpiae.core.training.task import Trainee, TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.losses.configs import (
    FeatureLossConfig,
    L1LossConfig,
    PivotLossConfig,
    PivotPerceptualLossConfig,
)
from rpiae.tasks.tokenizer.task import adversary_of
from tests.toys import ENCODERS, toy_run


def gradients(inputs: TrainerInputs, stage: StageConfig) -> tuple[dict[str, Tensor | None], float]:
    """Gradients of one backward pass by name, and the total."""
    model = inputs.task.model
    apply_stage(model.roles, stage.train)
    model.zero_grad()
    task = inputs.task
    objective = Objective(
        stage.terms, length=stage_length(stage, inputs.recipe, 8), layers=task.layers(),
        entry=task.entry,
    )  # fmt: skip
    adversary = adversary_of(objective)
    task.critic = adversary[0].critic.build().eval() if adversary else None
    batch = next(
        iter(
            inputs.data.batches(
                StageSteps(seed=0, stage=stage.name, batch_size=2, start=0, steps=1)
            )
        )
    )
    draws = StepRandomness(0, stage.name, 0, batch.samples)
    passed = Trainee(task, stage, objective)(0, MicroBatch(batch.inputs, draws, 1.0))
    weights = Balance(task.layers()).backward(passed, share=1.0, weigh=True)
    total = sum(weights[v.label] * v.value.detach() for v in passed.values)
    return {n: p.grad for n, p in trained_parameters(model.roles)}, float(total)


def test_stage_2_pixel_loss_reaches_the_bridge_through_the_frozen_decoder(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "rpiae")
    stage = inputs.recipe.stages[1]
    l1 = next(i for i, term in enumerate(stage.terms) if term.loss.name == "l1")
    assert stage.terms[l1].weight == 0.05
    terms = list(stage.terms)
    terms[l1] = evolve(terms[l1], weight=0.0)
    with_l1, _ = gradients(inputs, stage)
    without_l1, _ = gradients(inputs, evolve(stage, terms=tuple(terms)))
    assert with_l1.keys() == without_l1.keys()
    assert all(name.startswith("bridge.") for name in with_l1)
    for name, gradient in with_l1.items():
        other = without_l1[name]
        assert gradient is not None
        assert other is not None
        if gradient.any():
            assert not torch.equal(gradient, other), name


def test_pivot_perceptual_reaches_the_decoder_through_the_frozen_replica(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "rpiae")
    term = TermConfig(loss=PivotPerceptualLossConfig(name="pivot-perceptual"))
    found, _ = gradients(inputs, evolve(inputs.recipe.stages[0], terms=(term,)))
    decoder = [g for name, g in found.items() if name.startswith("decoder.")]
    assert decoder
    assert all(g is not None for g in decoder)
    assert sum(g.abs().sum().item() for g in decoder if g is not None) > 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_trainable_parameter_has_a_gradient_after_one_stage_1_step(
    tmp_path: Path, encoder: str
) -> None:
    inputs = toy_run(tmp_path, encoder, "vb4", "vit", "rpiae")
    found, _ = gradients(inputs, inputs.recipe.stages[0])
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert {name.partition(".")[0] for name in found} == {"encoder", "decoder"}


def test_pivot_loss_is_zero_at_first_and_positive_from_a_tuned_tokenizer(tmp_path: Path) -> None:
    inputs = toy_run(
        tmp_path, "vit", "vb4", "vit", "rpiae", "recipe.max_steps=3", "recipe.batch_size=2"
    )
    term = TermConfig(loss=PivotLossConfig(name="pivot"))
    stage = evolve(inputs.recipe.stages[0], terms=(term,))
    _, fresh = gradients(inputs, stage)
    assert fresh == 0
    list(train(inputs))
    _, tuned = gradients(inputs, stage)
    assert tuned > 0


def test_only_the_frozen_prefix_runs_without_gradients(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "rpiae")
    term = TermConfig(loss=L1LossConfig(name="l1"))
    frozen_bridge = evolve(
        inputs.recipe.stages[2], train=("encoder",), terms=(term,), use_bridge=True
    )
    found, _ = gradients(inputs, frozen_bridge)
    assert all(gradient is not None and gradient.any() for gradient in found.values())


def test_feature_loss_compares_with_the_clean_features(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "identity", "vit", "rpiae")
    term = TermConfig(loss=FeatureLossConfig(name="feature"))
    stage = evolve(inputs.recipe.stages[2], noise=1.0, terms=(term,), train=("decoder",))
    _, noisy = gradients(inputs, stage)
    _, clean = gradients(inputs, evolve(stage, noise=0.0))
    assert clean == 0
    assert noisy > 0

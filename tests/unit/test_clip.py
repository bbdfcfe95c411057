"""Clipping: one norm over all roles of a player, the model's apart from the critic's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from rpiae.core.training import events
from rpiae.core.training.trainer import train
from tests.toys import CRITICS, toy_run

#: AdamW in its linear range: so large an eps that the first step is minus the gradient.
PLAIN = {
    "learning_rate": 1e6, "final_learning_rate": 1e6, "eps": 1e6, "shape": "constant",
    "weight_decay": 0.0,
}  # fmt: skip
PIXELS: list[dict[str, Any]] = [{"loss": "mse", "reference": True}]


def one_step(
    folder: Path, *overrides: str, clip: float, terms: list[dict[str, Any]] = PIXELS
) -> tuple[events.StepDone, events.StageEnded, dict[str, Tensor]]:
    """A stage of one step: what it told, and what it took off the weights."""
    stage = {
        "name": "only", "train": ["encoder", "decoder"], "use_bridge": False, "steps": 1,
        "batch_size": 4, "terms": terms, "optimiser": PLAIN | {"clip": clip}, "ema": 0.0,
        "ema_warmup": False,
    }  # fmt: skip
    inputs = toy_run(folder, "vit", "vb4", "vit", {"name": "one", "stages": [stage]}, *overrides)
    before = {name: value.clone() for name, value in inputs.task.model.state_dict().items()}
    seen = list(train(inputs))
    after = inputs.task.model.state_dict()
    (step,) = [e for e in seen if isinstance(e, events.StepDone)]
    (ended,) = [e for e in seen if isinstance(e, events.StageEnded)]
    return step, ended, {name: before[name] - after[name] for name in before}


def norm(taken: dict[str, Tensor], role: str = "") -> float:
    return math.hypot(*(t.norm().item() for n, t in taken.items() if n.startswith(role)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_all_roles_are_scaled_by_one_factor_to_the_norm_that_is_wanted(
    tmp_path: Path, accumulate: int
) -> None:
    parts = f"recipe.accumulate={accumulate}"
    free, _, gradients = one_step(tmp_path / "free", parts, clip=0.0)
    total = math.hypot(*free.gradient_norms.values())
    assert set(free.gradient_norms) == {"encoder", "decoder"}
    for role, told in free.gradient_norms.items():
        assert norm(gradients, role) == pytest.approx(told, rel=1e-2)

    clipped, _, taken = one_step(tmp_path / "clipped", parts, clip=total / 4)
    assert clipped.gradient_norms == free.gradient_norms, "told as they were before"
    assert norm(taken) == pytest.approx(total / 4, rel=1e-2)
    for name, gradient in gradients.items():
        assert (4 * taken[name] - gradient).norm() <= 1e-2 * gradient.norm() + 1e-4 * total, name


def test_a_norm_that_is_not_reached_changes_no_bit(tmp_path: Path) -> None:
    step, free, _ = one_step(tmp_path / "free", clip=0.0)
    total = math.hypot(*step.gradient_norms.values())
    for name, factor in (("above", 1.01), ("below", 0.99)):
        _, ended, _ = one_step(tmp_path / name, clip=factor * total)
        assert (ended.digests == free.digests) == (factor > 1)


def game(**critic: float) -> list[dict[str, Any]]:
    """A critic with its own optimiser, that learns from what the model made before its step."""
    own = PLAIN | {"learning_rate": 1e4, "final_learning_rate": 1e4} | critic
    loss = {
        "name": "adversarial", "critic": CRITICS["patch"], "critic_input": "shared",
        "augment": [], "optimiser": own,
    }  # fmt: skip
    return [*PIXELS, {"loss": loss, "weight": 0.1}]


def test_model_and_critic_are_clipped_each_by_its_own_norm(tmp_path: Path) -> None:
    step, free, gradients = one_step(tmp_path / "free", clip=0.0, terms=game())
    model, critic = (
        math.hypot(*step.gradient_norms.values()),
        step.others["critic"]["gradient_norm"],
    )
    clipped = {
        "model": one_step(tmp_path / "model", clip=0.9 * model, terms=game()),
        "critic": one_step(tmp_path / "critic", clip=0.0, terms=game(clip=0.9 * critic)),
        "neither": one_step(tmp_path / "neither", clip=1.1 * model, terms=game(clip=1.1 * critic)),
    }
    for who, (told, ended, taken) in clipped.items():
        assert told.others["critic"]["gradient_norm"] == critic, "told as it was before"
        assert (ended.digests["critic"] == free.digests["critic"]) == (who != "critic"), who
        assert (ended.digests["weights"] == free.digests["weights"]) == (who != "model"), who
        assert norm(taken) == pytest.approx(
            (0.9 if who == "model" else 1) * norm(gradients), rel=1e-2
        ), who


def test_a_critic_without_settings_of_its_own_is_clipped_as_the_stage_is(tmp_path: Path) -> None:
    def terms(optimiser: dict[str, Any] | None) -> list[dict[str, Any]]:
        loss = {**game()[-1]["loss"], "optimiser": optimiser}
        return [*PIXELS, {"loss": loss, "weight": 0.1}]

    step, free, _ = one_step(tmp_path / "free", clip=0.0, terms=terms(None))
    clip = 0.5 * step.others["critic"]["gradient_norm"]
    _, inherited, _ = one_step(tmp_path / "a", clip=clip, terms=terms(None))
    _, named, _ = one_step(tmp_path / "b", clip=clip, terms=terms(PLAIN | {"clip": clip}))
    assert inherited.digests["critic"] == named.digests["critic"] != free.digests["critic"]

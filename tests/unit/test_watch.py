"""Signs that a stage goes wrong are said once, and a healthy stage is left in peace."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpiae.core.config.parts import Alarm
from rpiae.core.training import events
from rpiae.core.training.trainer import train
from rpiae.core.training.watch import Watch
from tests.toys import toy_run

RISING = Alarm(sign="rising", bound=0.05, advice="hold on")
VANISHING = Alarm(sign="vanishing", bound=0.01, advice="let go")


def said(alarm: Alarm, values: list[float]) -> list[tuple[int, str]]:
    watch = Watch(steps=len(values), alarms={"term": alarm})
    return [(i, text) for i, v in enumerate(values) for text in watch.step({"term": v})]


def test_a_loss_that_keeps_rising_is_said_once() -> None:
    (found,) = said(RISING, [0.001 * 1.01**i for i in range(400)])
    assert found[0] < 250
    assert found[1].startswith("term keeps rising (")
    assert found[1].endswith("): hold on")


@pytest.mark.parametrize(
    "values",
    [
        [1 - 0.97**i for i in range(400)],  # from zero to a plateau, as in every fresh run
        [0.5 + 0.1 * (i % 7) for i in range(400)],
        [2.0 - 0.004 * i for i in range(400)],
    ],
)
def test_a_loss_that_settles_is_not_mentioned(values: list[float]) -> None:
    assert said(RISING, values) == []


def test_a_term_that_vanishes() -> None:
    (found,) = said(VANISHING, [max(1e-4, 1.0 - 0.01 * i) for i in range(400)])
    assert "term is down to 0.0001: let go" in found[1]
    assert said(VANISHING, [0.5] * 400) == []


def test_a_stage_without_a_kl_weight_that_bites_says_nothing_and_one_that_collapses_does(
    tmp_path: Path,
) -> None:
    short = ("recipe.max_steps=60", "recipe.batch_size=4")
    texts = {}
    for name, weight in (("healthy", 1e-3), ("collapsed", 1e3)):
        inputs = toy_run(
            tmp_path / name, "vit", "vb4", "vit", "quick", *short,
            f"recipe.stages[1].terms[1].weight={weight}",
        )  # fmt: skip
        texts[name] = [e.text for e in train(inputs) if isinstance(e, events.Notice)]
    assert texts["healthy"] == []
    assert len(texts["collapsed"]) == 1
    assert "stage compress, step" in texts["collapsed"][0]
    assert "Lower the term's weight" in texts["collapsed"][0]


def test_dead_channels_are_said_once(tmp_path: Path) -> None:
    task = toy_run(tmp_path, "vit", "vb4", "vit", "quick").task
    assert not task.remarks({"psnr": 20.0})
    watch = Watch(steps=10, alarms={})
    (text,) = watch.remarks(task.remarks({"dead_channels": 2.0}))
    assert text.startswith("2 latent channels carry nothing")
    assert list(watch.remarks(task.remarks({"dead_channels": 2.0}))) == []

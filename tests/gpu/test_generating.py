"""Generators on a GPU: training and sampling against the processor, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rpiae.core.training import events
from rpiae.runs.generating import resume_generator, run_generator
from rpiae.sampling import load_generator
from tests.short_run import short_generator_run, write_latents

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def trained(latents: Path, out: Path, device: torch.device, precision: str = "fp32") -> list[float]:
    run: dict[str, Any] = short_generator_run(latents, out)
    happened = run_generator(run | {"device": str(device), "precision": precision})
    return [e.total for e in happened if isinstance(e, events.StepDone)]


def test_the_card_trains_as_the_processor(
    latents: Path, tmp_path: Path, card: torch.device
) -> None:
    """Losses at the first step, where the model gives zero, depend on the draws alone: these are made
    where they are used, so the means agree as far as two draws do."""
    here = trained(latents, tmp_path / "card", card)
    there = trained(latents, tmp_path / "processor", torch.device("cpu"))
    assert here[-1] == pytest.approx(there[-1], rel=0.3)


def test_a_run_on_the_card_resumes_exactly(
    latents: Path, tmp_path: Path, card: torch.device
) -> None:
    def digests(happened: Any) -> list[dict[str, str]]:
        return [dict(e.digests) for e in happened if isinstance(e, events.StageEnded)]

    def run(name: str) -> Any:
        return run_generator(short_generator_run(latents, tmp_path / name) | {"device": str(card)})

    whole = digests(run("whole"))
    happened = run("broken")
    for event in happened:
        if isinstance(event, events.CheckpointSaved):
            break
    happened.close()
    assert digests(resume_generator(tmp_path / "broken")) == whole


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_card_samples_as_the_processor(
    latents: Path, tmp_path: Path, card: torch.device, guidance: float
) -> None:
    trained(latents, tmp_path / "g", card, "bf16")
    found = [
        load_generator(tmp_path / "g", device=device).sample(
            [0, 1, None], guidance=guidance, steps=8
        )
        for device in (card, "cpu")
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=5e-3)

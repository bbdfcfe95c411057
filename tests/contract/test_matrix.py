"""Any combination builds into a working tokenizer: encoder × bridge × decoder × recipe."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attrs import evolve

from rpiae.core import events
from rpiae.core.registry import registry
from rpiae.core.trainer import train
from rpiae.testing import SyntheticImages
from tests.toys import BRIDGES, DECODERS, ENCODERS, RECIPES, toy_run

LOAD = """
import sys, torch, pytest_socket
pytest_socket.disable_socket()
from safetensors.torch import load_file, save_file
import rpiae
for folder in sys.argv[1:]:
    model = rpiae.load(folder)
    images = load_file(folder + "/images.safetensors")["images"]
    with torch.no_grad():
        save_file({"made": model.reconstruct(images)}, folder + "/made.safetensors")
"""


def test_matrix_trains_saves_and_loads_in_a_fresh_process(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    expected = {}
    for i, combination in enumerate(itertools.product(ENCODERS, BRIDGES, DECODERS, RECIPES)):
        inputs = toy_run(
            tmp_path / f"run{i}", *combination, "recipe.max_steps=1", "recipe.batch_size=2"
        )
        seen = list(train(inputs))
        stages = [s.name for s in inputs.recipe.stages]
        done = {e.stage for e in seen if isinstance(e, (events.StageEnded, events.StageSkipped))}
        assert done == set(stages), combination
        steps = [e for e in seen if isinstance(e, events.StepDone)]
        assert steps, combination
        assert all(e.gradient_norms for e in steps), combination
        folder = inputs.model.eval().save_pretrained(tmp_path / f"tokenizer{i}")
        images = torch.rand(1, 3, 40, 28, generator=torch.Generator().manual_seed(i))
        save_file({"images": images}, folder / "images.safetensors")
        with torch.no_grad():
            expected[folder] = (combination, inputs.model.reconstruct(images))
    subprocess.run([sys.executable, "-c", LOAD, *map(str, expected)], check=True)
    for folder, (combination, reconstruction) in expected.items():
        made = load_file(folder / "made.safetensors")["made"]
        assert torch.equal(made, reconstruction), combination
        saved = json.loads((folder / "config.json").read_text())
        assert "rpiae." not in json.dumps({k: saved[k] for k in ("encoder", "bridge", "decoder")})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_overfits_one_batch(tmp_path: Path, encoder: str, bridge: str, recipe: str) -> None:
    inputs = toy_run(
        tmp_path, encoder, bridge, "vit", recipe, "recipe.max_steps=40", "recipe.batch_size=2",
        *[f"recipe.stages[{i}].optimiser.learning_rate=5e-3" for i in _stages(recipe)],
        *[f"recipe.stages[{i}].noise=0.0" for i in _stages(recipe)],
        *[f"recipe.stages[{i}].epochs=40" for i in _stages(recipe) if _in_epochs(recipe)],
    )  # fmt: skip
    inputs = evolve(inputs, data=SyntheticImages(32, count=2))
    first = None
    totals = []
    for event in train(inputs):
        if isinstance(event, events.StepDone):
            first = first or event.stage
            if event.stage == first:
                totals.append(event.total)
    assert len(totals) == 40
    assert min(totals[-5:]) < 0.7 * totals[0]


def _stages(recipe: str) -> range:
    return range(len(registry("recipes").select(recipe).tree["stages"]))


def _in_epochs(recipe: str) -> bool:
    return "epochs" in registry("recipes").select(recipe).tree["stages"][0]

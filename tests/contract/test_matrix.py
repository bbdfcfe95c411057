"""Any combination builds into a working tokenizer: encoder × bridge × decoder × recipe."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rpiae import runs
from rpiae.core import events
from rpiae.core.build import build_tokenizer
from rpiae.core.contracts import Batch, HeldOut
from rpiae.core.objective import PivotReplica
from rpiae.core.recipe import StageConfig
from rpiae.core.registry import registry
from rpiae.core.runtime import Runtime
from rpiae.core.tokenizer import RPiAE
from rpiae.core.trainer import TrainerInputs, train

ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "width": 32, "depth": 2, "num_heads": 2},
    "vit-patch-stem": {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "stem": "patch"},
    "timm": {
        "name": "timm",
        "model": "vit_small_patch14_reg4_dinov2",
        "pretrained": False,
        "model_args": {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 28},
        "image_size": 32,
    },
    "timm-layers": {
        "name": "timm",
        "model": "vit_base_patch16_224",
        "pretrained": False,
        "layers": [0, 2],
        "model_args": {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32},
        "image_size": 32,
    },
    "timm-rotary": {
        "name": "timm",
        "model": "vit_small_patch16_dinov3",
        "pretrained": False,
        "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32},
        "image_size": 32,
    },
}
BRIDGES = ("vb4", "identity")
DECODERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64}
}
RECIPES = tuple(preset.name for preset in registry("recipes").presets())


class Noise:
    """Smooth random images as a dataset."""

    def __init__(self, size: int) -> None:
        self.num_images = 8
        self.image_size = size
        coarse = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self._images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")

    def batches(
        self, *, seed: int, stage: str, batch_size: int, start: int, steps: int
    ) -> Iterator[Batch]:
        for step in range(start, steps):
            samples = tuple(range(step * batch_size, (step + 1) * batch_size))
            yield Batch(self._images[[s % 8 for s in samples]], samples, ())

    def held_out(self) -> HeldOut:
        names = ("a", "b")
        return HeldOut(self._images[:2], names, dict.fromkeys(names, 1))

    def crops(self, count: int, *, seed: int) -> Tensor:
        return self._images[:count]


def start(
    folder: Path, encoder: str, bridge: str, decoder: str, recipe: str, *overrides: str
) -> TrainerInputs:
    tree = {
        "encoder": ENCODERS[encoder], "bridge": bridge, "decoder": DECODERS[decoder],
        "recipe": recipe,
    }  # fmt: skip
    terms = {
        term["loss"]
        for stage in registry("recipes").select(recipe).tree["stages"]
        for term in stage["terms"]
    }
    without = tuple(sorted(terms & {"lpips", "adversarial"}))
    resolved = runs.resolve(tree, overrides=overrides, without=without)
    model = build_tokenizer(resolved.tokenizer, seed=0)
    pivot = build_tokenizer(resolved.tokenizer, seed=0).encoder

    def evaluate(current: RPiAE, stage: StageConfig) -> dict[str, float]:
        return {"psnr": 0.0}

    return TrainerInputs(
        model=model, recipe=resolved.config.recipe, data=Noise(32),
        runtime=Runtime(device="cpu", precision="fp32"),
        replica=PivotReplica(pivot, output_patch=model.decoder.patch),
        evaluate=evaluate, folder=folder, seed=0,
    )  # fmt: skip


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
        inputs = start(
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
    inputs = start(
        tmp_path, encoder, bridge, "vit", recipe, "recipe.max_steps=40", "recipe.batch_size=8",
        *[f"recipe.stages[{i}].optimiser.learning_rate=3e-3" for i in _stages(recipe)],
        *[f"recipe.stages[{i}].noise=0.0" for i in _stages(recipe)],
    )  # fmt: skip
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

"""Any combination builds into a working tokenizer: encoder × bridge × decoder × recipe × data."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from attrs import evolve

from rpiae.core.model.folders import save_tokenizer
from rpiae.core.training import events
from rpiae.core.training.trainer import train
from rpiae.testing import SyntheticImages
from tests.toys import BRIDGES, DATA, DECODERS, ENCODERS, RECIPES, toy_recipe, toy_run

LOAD = """
import sys, torch, pytest_socket
pytest_socket.disable_socket()
from safetensors.torch import load_file, save_file
import rpiae
for folder in sys.argv[1:]:
    model = rpiae.load(folder)
    images = load_file(folder + "/images.safetensors")["images"]
    with torch.no_grad():
        save_file({"made": model.reconstruct(images).contiguous()}, folder + "/made.safetensors")
"""


Combination = tuple[str, ...]
Choice = tuple[int, str]
Pair = tuple[Choice, Choice]


def pairs(combination: Combination) -> Iterator[Pair]:
    """Every two factors of a combination with their values."""
    return itertools.combinations(enumerate(combination), 2)


def covering(*factors: Iterable[str]) -> list[Combination]:
    """Few combinations in which every pair of values of two factors occurs; always the same ones.

    Greedy: each one begins with a pair that is still missing, and takes for every other factor the
    value that adds most missing pairs, among equals the one that was taken least.
    """
    values = [tuple(factor) for factor in factors]
    missing = dict.fromkeys(pair for c in itertools.product(*values) for pair in pairs(c))
    taken: Counter[Choice] = Counter()
    found = []
    while missing:
        chosen = dict(next(iter(missing)))
        for place, choices in enumerate(values):
            if place not in chosen:
                options = [(place, value) for value in choices]
                added = [_added(option, chosen, missing) for option in options]
                ranks = [(n, -taken[o]) for n, o in zip(added, options, strict=True)]
                chosen[place] = choices[ranks.index(max(ranks))]
        taken.update(chosen.items())
        combination = tuple(chosen[place] for place in range(len(values)))
        for pair in pairs(combination):
            missing.pop(pair, None)
        found.append(combination)
    return found


def _added(option: Choice, chosen: dict[int, str], missing: Container[Pair]) -> int:
    """How many missing pairs a choice forms with those already made."""
    return sum((min(option, other), max(option, other)) in missing for other in chosen.items())


COMBINATIONS = covering(ENCODERS, BRIDGES, DECODERS, RECIPES, DATA)
ALL = list(itertools.product(ENCODERS, BRIDGES, DECODERS, RECIPES, DATA))


def test_every_pair_of_parts_and_recipes_is_in_the_matrix() -> None:
    assert {p for c in COMBINATIONS for p in pairs(c)} == {p for c in ALL for p in pairs(c)}
    assert len(set(COMBINATIONS)) == len(COMBINATIONS)
    assert set(COMBINATIONS) <= set(ALL)


@pytest.mark.parametrize(
    "combinations",
    [
        pytest.param(COMBINATIONS, id="pairs"),
        pytest.param(ALL, id="all", marks=pytest.mark.slow),
    ],
)
def test_matrix_trains_saves_and_loads_in_a_fresh_process(
    tmp_path: Path, combinations: list[Combination]
) -> None:
    from safetensors.torch import load_file, save_file

    expected = {}
    for i, combination in enumerate(combinations):
        *names, data = combination
        inputs = toy_run(
            tmp_path / f"run{i}", *names, "recipe.max_steps=1", "recipe.batch_size=2", data=data
        )
        seen = list(train(inputs))
        stages = [s.name for s in inputs.recipe.stages]
        done = {e.stage for e in seen if isinstance(e, (events.StageEnded, events.StageSkipped))}
        assert done == set(stages), combination
        steps = [e for e in seen if isinstance(e, events.StepDone)]
        assert steps, combination
        assert all(e.gradient_norms for e in steps), combination
        folder = save_tokenizer(inputs.task.model.eval(), tmp_path / f"tokenizer{i}")
        time = (4,) if data == "clips" else ()
        images = torch.rand(1, 3, *time, 40, 28, generator=torch.Generator().manual_seed(i))
        save_file({"images": images}, folder / "images.safetensors")
        with torch.no_grad():
            expected[folder] = (combination, inputs.task.model.reconstruct(images))
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
    errors = []
    for event in train(inputs):
        if isinstance(event, events.StepDone):
            first = first or event.stage
            if event.stage == first:
                errors.append(event.terms["l1"])
    assert len(errors) == 40
    assert min(errors[-5:]) < 0.7 * errors[0]


def _stages(recipe: str) -> range:
    return range(len(toy_recipe(recipe)["stages"]))


def _in_epochs(recipe: str) -> bool:
    return "epochs" in toy_recipe(recipe)["stages"][0]

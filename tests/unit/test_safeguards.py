"""What must not happen quietly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rpiae import runs
from rpiae.core.errors import CheckpointError, UnknownNameError
from tests.toys import DECODERS, ENCODERS, toy_run


def tree(**fields: Any) -> dict[str, Any]:
    return {"encoder": ENCODERS["vit"], "bridge": "vb4", "decoder": DECODERS["vit"], **fields}


def test_saving_replaces_a_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    model = toy_run(tmp_path, "vit", "vb4", "vit", "quick").model
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="holds other things than a tokenizer"):
        model.save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years"


def test_resolving_leaves_the_callers_tree_alone() -> None:
    given = tree(recipe="rpiae")
    given["recipe"] = runs.unparse(runs.resolve(given).config.recipe)
    given["recipe"]["stages"][0]["terms"].append({"loss": "mse"})
    before = copy.deepcopy(given)
    first = runs.resolve(given).config
    assert given == before
    assert runs.resolve(given).config == first


def test_a_misspelt_loss_is_no_loss_of_another_version() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pivot'"):
        runs.resolve(tree(recipe="quick"), overrides=("recipe.stages[0].terms[1].loss=pivto",))


def test_the_plan_says_what_no_stage_trains() -> None:
    notices = runs.plan(runs.resolve(tree(recipe="rae"))).notices
    assert any("no stage of recipe 'rae' trains the bridge" in text for text in notices)


@pytest.mark.parametrize("encoder", ["vit-patch-stem", "timm"])
def test_the_replica_sees_what_the_model_sees_at_any_size(tmp_path: Path, encoder: str) -> None:
    inputs = toy_run(tmp_path, encoder, "vb4", "vit", "quick")
    images = torch.rand(1, 3, 30, 45)
    ours, pivot = inputs.model.eval().features(images), inputs.replica.features(images)
    assert ours.grid == pivot.grid
    torch.testing.assert_close(ours.tokens, pivot.tokens)

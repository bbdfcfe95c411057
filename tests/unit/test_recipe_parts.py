"""Recipes as parts: presets, tables of the user's own, and what their task says of their stages."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from rpiae import runs
from rpiae.core.config.recipe import RecipeConfig, RunConfig, StageConfig
from rpiae.core.config.tree import Tree, unparse
from rpiae.core.errors import ConfigError
from rpiae.core.model.stages import checked_stages
from tests.toys import ENCODERS


def resolved(recipe: str | Tree) -> RunConfig:
    tree = {"encoder": ENCODERS["vit"], "bridge": "linear4", "decoder": "vit-t", "recipe": recipe}
    return runs.resolve(tree).config


STAGE: Tree = {
    "name": "a", "train": ["decoder"], "steps": 2, "terms": [{"loss": "l1", "reference": True}],
}  # fmt: skip


def test_a_table_with_stages_under_a_name_of_its_own_is_a_recipe() -> None:
    own = {"name": "mine", "stages": [STAGE], "batch_size": 3}
    recipe = resolved(own).recipe
    assert (recipe.name, recipe.label, recipe.batch_size) == ("tokenizer", "mine", 3)
    named = resolved({"name": "tokenizer", "stages": [STAGE]}).recipe
    assert (named.name, named.label) == ("tokenizer", "tokenizer")
    again = unparse(recipe)
    assert resolved(again).recipe == recipe


def test_a_preset_of_a_recipe_takes_other_fields_as_any_preset_does() -> None:
    recipe = resolved({"name": "quick", "batch_size": 3}).recipe
    assert (recipe.label, recipe.batch_size, len(recipe.stages)) == ("quick", 3, 3)


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ({"train": ["decodr.*"]}, "train[0]: 'decodr.*' does not begin with a role. Did you mean 'decoder'"),
        (
            {"terms": [{"loss": "l1", "reference": True}, {"loss": "pivot", "adaptive": {"layer": "encodr"}}]},
            "terms[1].adaptive.layer: expected one of 'encoder', 'encoder-last', 'decoder', got 'encodr', did you",
        ),
    ],
)  # fmt: skip
def test_names_in_a_stage_that_its_task_does_not_know(stage: Tree, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved({"name": "mine", "stages": [STAGE | stage]})
    assert f"recipe.stages[0].{problem}" in str(caught.value)


class WordStages:
    """A task that trains words, and has nothing for terms but these."""

    def problems(self, stage: StageConfig) -> Iterator[str]:
        yield from (f"train: {name!r} is no word" for name in stage.train if name != "words")

    def offers(self, stage: StageConfig, config: RunConfig) -> tuple[frozenset[str], str]:
        return frozenset({"words"}), "it is of words"


@attrs.frozen(kw_only=True)
class WordRecipeConfig(RecipeConfig):
    module = f"{__name__}:WordStages"


def test_another_task_has_roles_and_needs_of_its_own() -> None:
    config = resolved("quick")
    stages = config.recipe.stages[:1]
    wrong = attrs.evolve(config, recipe=WordRecipeConfig(name="words", stages=stages))
    _, _, problems = checked_stages(wrong)
    assert "recipe.stages[0].train: 'encoder' is no word" in problems
    assert any(
        "needs pixels, which this stage does not have (it is of words)" in p for p in problems
    )
    right = tuple(attrs.evolve(stage, train=("words",), terms=()) for stage in stages)
    _, _, problems = checked_stages(
        attrs.evolve(wrong, recipe=attrs.evolve(wrong.recipe, stages=right))
    )
    assert problems == ["recipe.stages[0]: no loss terms are left"]

"""What must not happen quietly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rpiae import runs
from rpiae.core.config.tree import unparse
from rpiae.core.errors import CheckpointError, ConfigError, UnknownNameError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.training.schedules import learning_rate
from rpiae.runs.planning import Plan, make_plan
from tests.toys import DECODERS, ENCODERS, toy_run


def tree(**fields: Any) -> dict[str, Any]:
    return {"encoder": ENCODERS["vit"], "bridge": "vb4", "decoder": DECODERS["vit"], **fields}


def test_saving_replaces_a_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    model = toy_run(tmp_path, "vit", "vb4", "vit", "quick").task.model
    save_tokenizer(model, tmp_path / "a")
    save_tokenizer(model, tmp_path / "a")
    (tmp_path / "a" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="holds other things than a tokenizer"):
        save_tokenizer(model, tmp_path / "a")
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years"


def test_resolving_leaves_the_callers_tree_alone() -> None:
    given = tree(recipe="rpiae")
    given["recipe"] = unparse(runs.resolve(given).config.recipe)
    given["recipe"]["stages"][0]["terms"].append({"loss": "mse"})
    before = copy.deepcopy(given)
    first = runs.resolve(given).config
    assert given == before
    assert runs.resolve(given).config == first


def test_a_misspelt_loss_is_no_loss_of_another_version() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pivot'"):
        runs.resolve(tree(recipe="quick"), overrides=("recipe.stages[0].terms[1].loss=pivto",))


def stage(*train: str, loss: str = "l1", **fields: Any) -> dict[str, Any]:
    return {
        "name": "-".join(train),
        "train": list(train),
        "steps": 1,
        "terms": [{"loss": loss}],
    } | fields


def planned(bridge: str, *stages: dict[str, Any], pretrained: bool = True, **fields: Any) -> Plan:
    encoder = "tiny" if pretrained else ENCODERS["vit"]
    recipe = {"name": "mine", "stages": list(stages)}
    return make_plan(runs.resolve(tree(encoder=encoder, bridge=bridge, recipe=recipe, **fields)))


@pytest.mark.parametrize(
    ("role", "bridge", "stages"),
    [
        ("bridge", "vb4", [stage("decoder", use_bridge=False)]),
        ("bridge", "vb4", [stage("decoder")]),
        ("bridge", "vb4", [stage("bridge", "decoder", use_bridge=False)]),  # not in its path
        ("bridge", "vb4", [stage("bridge", loss="pivot"), stage("decoder")]),  # nothing reaches it
        ("decoder", "vb4", [stage("bridge", "decoder", loss="feature")]),
        ("decoder", "identity", [stage("encoder", loss="pivot")]),
    ],
)
def test_a_part_that_ships_untrained_is_an_error_of_the_plan(
    tmp_path: Path, role: str, bridge: str, stages: list[dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match=f"no stage of recipe 'mine' trains the {role}"):
        planned(bridge, *stages)
    parts = tree(encoder="tiny", bridge=bridge, recipe="quick")
    saved = save_tokenizer(build_tokenizer(runs.resolve(parts).tokenizer, seed=0), tmp_path / "a")
    planned(bridge, *stages, init=str(saved))
    others = [each for each in ("encoder", "decoder", "bridge") if each != role]
    with pytest.raises(ConfigError, match=f"trains the {role}"):
        planned(bridge, *stages, init=str(saved), init_parts=others)


L1, PIVOT = {"loss": "l1"}, {"loss": "pivot"}
IDLE: dict[str, dict[str, Any]] = {
    "no weight": {"terms": [L1 | {"weight": 0.0}]},
    "no weight behind the bridge": {"terms": [L1 | {"weight": 0.0}, PIVOT]},
    "no learning rate": {"optimiser": {"learning_rate": 0.0}},
    "begins at the end": {"steps": 4, "terms": [L1 | {"start_steps": 4}]},
    "begins after the end": {"steps": 4, "terms": [L1 | {"start_steps": 9}, PIVOT]},
}


@pytest.mark.parametrize("fields", IDLE.values(), ids=IDLE)
def test_a_stage_whose_terms_move_nothing_trains_nothing(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no stage of recipe 'mine' trains the bridge"):
        planned("vb4", stage("bridge", "decoder", **fields), stage("decoder"))


@pytest.mark.parametrize(
    ("num_images", "refused"), [(None, False), (8, True), (9, False), (16, False)]
)
def test_a_start_beyond_an_end_in_epochs_is_told_where_the_data_are_known(
    num_images: int | None, refused: bool
) -> None:
    term = L1 | {"start_steps": 8}
    recipe = {
        "name": "mine",
        "stages": [stage("bridge", "decoder", steps=None, epochs=1.0, batch_size=1, terms=[term])],
    }
    resolved = runs.resolve(tree(encoder="tiny", bridge="vb4", recipe=recipe))
    if refused:
        with pytest.raises(ConfigError, match="begin before the stage ends"):
            make_plan(resolved, num_images=num_images)
    else:
        assert len(make_plan(resolved, num_images=num_images).stages) == 1


def test_a_learning_rate_of_zero_stays_zero() -> None:
    rates = [
        learning_rate(s, base=0.0, final=1e-3, warmup_steps=2, decay_steps=5) for s in range(9)
    ]
    assert rates == [0.0] * 9


def test_what_to_do_about_an_untrained_bridge_is_told() -> None:
    with pytest.raises(ConfigError, match=r"'vb4'.*identity, linearN.*vae.*`train`.*--init"):
        planned("vb4", stage("decoder"))


def test_a_part_that_needs_no_training_needs_no_stage() -> None:
    for bridge in ("identity", "linear4"):
        assert planned(bridge, stage("decoder")).notices is not None
    with pytest.raises(ConfigError, match=r"trains the encoder 'vit'.*encoder\.pretrained = true"):
        planned("identity", stage("decoder"), pretrained=False)


def test_a_part_that_is_trained_in_part_is_told() -> None:
    plan = planned("identity", stage("decoder.blocks.*"))
    assert any("of the decoder 'vit' are trained by no stage" in text for text in plan.notices)


@pytest.mark.parametrize("encoder", ["vit-patch-stem", "timm"])
def test_the_replica_sees_what_the_model_sees_at_any_size(tmp_path: Path, encoder: str) -> None:
    inputs = toy_run(tmp_path, encoder, "vb4", "vit", "quick")
    images = torch.rand(1, 3, 30, 45)
    ours, pivot = inputs.task.model.eval().features(images), inputs.task.replica.features(images)
    assert ours.grid == pivot.grid
    torch.testing.assert_close(ours.tokens, pivot.tokens)

"""Parsing coerces nothing, knows its fields and reports every problem with its path."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from attrs import frozen
from hypothesis import assume, given
from hypothesis import strategies as st

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.config.fields import wired, within
from rpiae.core.config.recipe import RunConfig
from rpiae.core.errors import ConfigError
from rpiae.core.model.naming import converter

texts = st.text(max_size=5)
numbers_as_text = st.integers().map(str) | st.floats().map(str)
containers: st.SearchStrategy[Any] = st.just([]) | st.just({}) | st.just([1]) | st.just({"a": 1})
not_int = st.one_of(st.booleans(), st.floats(), numbers_as_text, texts, containers)
not_number = st.one_of(st.booleans(), numbers_as_text, texts, containers)
not_bool = st.one_of(
    st.sampled_from(["true", "false", "True", "yes", ""]), st.integers(), st.floats(), containers
)
not_text = st.one_of(st.booleans(), st.integers(), st.floats(), containers)
not_list: st.SearchStrategy[Any] = st.one_of(
    st.booleans(), st.integers(), st.floats(), texts, st.just({})
)
not_table: st.SearchStrategy[Any] = st.one_of(
    st.booleans(), st.integers(), st.floats(), texts, st.just([])
)
Path = tuple[str | int, ...]

STAGE: Path = ("recipe", "stages", 0)
TERM: Path = (*STAGE, "terms", 0)
WRONG: dict[Path, st.SearchStrategy[Any]] = {
    ("seed",): not_int,
    ("out",): not_text,
    ("device",): not_text,
    ("precision",): texts | not_text,
    ("compile",): not_bool,
    ("encoder", "width"): not_int,
    ("encoder", "mlp_ratio"): not_number,
    ("encoder", "pretrained"): not_bool,
    ("encoder", "mean"): not_list,
    ("encoder", "image_size"): not_int,
    ("bridge", "latent_channels"): not_int,
    ("decoder", "stored_grid"): not_list,
    ("recipe", "preset"): not_text,
    ("recipe", "accumulate"): not_int,
    ("recipe", "max_steps"): not_int,
    (*STAGE, "train"): not_list,
    (*STAGE, "use_bridge"): not_bool,
    (*STAGE, "posterior"): texts | not_text,
    (*STAGE, "noise"): not_number,
    (*STAGE, "steps"): not_int,
    (*STAGE, "optimiser", "learning_rate"): not_number,
    (*STAGE, "optimiser", "warmup_from_zero"): not_bool,
    (*STAGE, "optimiser", "decay_epochs"): not_number,
    (*TERM, "weight"): not_number,
    (*TERM, "optional"): not_bool,
    (*TERM, "adaptive"): not_table,
}
CHOICES = {"auto", "fp32", "bf16", "sample", "mode"}
TABLES: dict[Path, tuple[str, str]] = {
    (): ("RunConfig", "precision"),
    ("encoder",): ("VitEncoderConfig", "native_grid"),
    ("bridge",): ("VariationalBridgeConfig", "latent_channels"),
    ("recipe",): ("TokenizerRecipeConfig", "checkpoint_every"),
    STAGE: ("StageConfig", "start_from"),
    (*STAGE, "optimiser"): ("OptimiserConfig", "learning_rate"),
    TERM: ("TermConfig", "start_epochs"),
}
MINIMA: dict[Path, float] = {
    ("seed",): 0,
    ("encoder", "width"): 4,
    ("recipe", "accumulate"): 1,
    (*STAGE, "noise"): 0,
    (*STAGE, "optimiser", "eps"): 0,
    (*TERM, "weight"): 0,
}


def _valid() -> dict[str, Any]:
    return {
        "encoder": {"name": "vit"},
        "bridge": {"name": "variational"},
        "decoder": {"name": "vit"},
        "recipe": {
            "name": "test",
            "stages": [
                {
                    "name": "one",
                    "train": ["decoder"],
                    "steps": 3,
                    "optimiser": {},
                    "terms": [{"loss": {"name": "l1"}}],
                }
            ],
        },
    }


def _parsed(tree: Any) -> RunConfig:
    return parse(tree, RunConfig, source="the test", converter=converter())


def _set(tree: Any, path: Path, value: Any) -> None:
    for step in path[:-1]:
        tree = tree[step]
    tree[path[-1]] = value


def _written(path: Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.lstrip(".")


def _problems(tree: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        _parsed(tree)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


def test_the_valid_tree_is_valid() -> None:
    assert _parsed(_valid()).recipe.stages[0].steps == 3


@given(st.sampled_from(list(WRONG)), st.data())
def test_nothing_is_coerced(path: Path, data: st.DataObject) -> None:
    value = data.draw(WRONG[path])
    assume(not (isinstance(value, str) and value in CHOICES))
    tree = _valid()
    _set(tree, path, value)
    found = _problems(tree)
    assert {problem.partition(": ")[0] for problem in found} == {_written(path)}
    assert any(problem.startswith(f"{_written(path)}: expected ") for problem in found)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("seed",), "3", "seed: expected int, got '3'"),
        (("seed",), True, "seed: expected int, got True"),
        (("seed",), 3.0, "seed: expected int, got 3.0"),
        (("encoder", "pretrained"), "false", "encoder.pretrained: expected true or false"),
        (("encoder", "pretrained"), 0, "encoder.pretrained: expected true or false, got 0"),
        ((*STAGE, "steps"), "10k", "recipe.stages[0].steps: expected int, got '10k'"),
        ((*STAGE, "noise"), True, "recipe.stages[0].noise: expected float, got True"),
        ((*STAGE, "noise"), float("nan"), "recipe.stages[0].noise: expected a finite number"),
        (("out",), 3, "out: expected string, got 3"),
        (("precision",), "bf61", "precision: expected one of 'auto', 'fp32', 'bf16', got 'bf61'"),
        (("encoder", "mean"), [0.5, 0.5], "encoder.mean: expected 3 values, got 2"),
    ],
)
def test_what_a_problem_says(path: Path, value: Any, problem: str) -> None:
    tree = _valid()
    _set(tree, path, value)
    (found,) = _problems(tree)
    assert found.startswith(problem.partition(" float")[0])


@given(st.integers(0, 10**6))
def test_a_whole_number_is_a_number(value: int) -> None:
    tree = _valid()
    tree["recipe"]["stages"][0]["noise"] = value
    noise = _parsed(tree).recipe.stages[0].noise
    assert noise == value
    assert isinstance(noise, float)


@given(st.sampled_from(list(TABLES)), st.data())
def test_an_unknown_key_is_answered_with_a_near_one(path: Path, data: st.DataObject) -> None:
    cls, field = TABLES[path]
    dropped = data.draw(st.integers(0, len(field) - 1))
    misspelt = field[:dropped] + field[dropped + 1 :]
    tree = _valid()
    _set(tree, (*path, misspelt), 1)
    (problem,) = _problems(tree)
    written = _written((*path, misspelt))
    assert problem == f"{written}: no such field in {cls}, did you mean {field!r}?"


@given(st.sampled_from(list(MINIMA)), st.integers(1, 100))
def test_values_below_their_minimum_are_refused(path: Path, below: int) -> None:
    tree = _valid()
    value = int(MINIMA[path]) - below
    _set(tree, path, value)
    (problem,) = _problems(tree)
    assert problem == f"{_written(path)}: must be at least {MINIMA[path]}, got {value}"


@frozen
class _Bounded:
    depth: int = within(1, 512, default=2)
    ratio: float = within(0, 64, default=1)
    grid: tuple[int, int] | None = within(1, 1024, default=None)
    features: int | None = wired("encoder.width", what="channels", maximum=65536)


@given(st.sampled_from(["depth", "features"]), st.integers(1, 5000), st.booleans())
def test_absurd_numbers_of_any_length_are_refused(name: str, digits: int, below: bool) -> None:
    value = (-1 if below else 1) * 10 ** (digits + 5)
    with pytest.raises(ConfigError) as caught:
        parse({name: value}, _Bounded, source="the test", converter=make_converter())
    bound = (
        "must be at least 1" if below else f"must be at most {512 if name == 'depth' else 65536}"
    )
    assert any(p.startswith(f"{name}: {bound}, got ") for p in caught.value.problems)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"ratio": 1e300}, "ratio: must be at most 64, got 1e+300"),
        ({"grid": [-1, 1]}, "grid: must be at least 1, got -1"),
        ({"grid": [16, 10**6]}, "grid: must be at most 1024, got 1000000"),
        ({"depth": "x" * 10**6}, "depth: expected int, got 'xxxxxx"),
    ],
)
def test_bounds_hold_for_each_number_of_a_list(tree: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tree, _Bounded, source="the test", converter=make_converter())
    (found,) = caught.value.problems
    assert found.startswith(problem)
    assert len(found) < 200


BOUNDED: dict[Path, int] = {
    ("recipe", "accumulate"): 65_536,
    ("recipe", "batch_size"): 1_048_576,
    (*STAGE, "batch_size"): 1_048_576,
}


@pytest.mark.parametrize(("path", "most"), BOUNDED.items(), ids=map(_written, BOUNDED))
def test_a_batch_has_a_largest_size(path: Path, most: int) -> None:
    tree = _valid()
    _set(tree, path, most)
    _parsed(tree)
    for value in (most + 1, 10**12, 2**62):
        _set(tree, path, value)
        (problem,) = _problems(tree)
        assert problem.startswith(f"{_written(path)}: must be at most {most}, got ")


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_an_average_is_one(decay: float) -> None:
    tree = _valid()
    _set(tree, (*STAGE, "ema"), decay)
    (problem,) = _problems(tree)
    assert problem.startswith("recipe.stages[0].ema: must be at ")


def test_a_number_of_more_than_64_bits_is_refused_where_no_bound_is_named() -> None:
    tree = _valid()
    _set(tree, ("recipe", "stages", 0, "noise"), 16**5000)
    tree["recipe"]["max_steps"] = 2**63
    assert _problems(tree) == (
        "recipe.max_steps: expected a number of at most 64 bits, got 9223372036854775808",
        "recipe.stages[0].noise: expected a number of at most 64 bits, "
        "got a number of about 6021 digits",
    )


@given(
    st.sets(st.sampled_from(list(WRONG)), min_size=1),
    st.sets(st.sampled_from(list(TABLES))),
    st.data(),
)
def test_all_problems_are_reported_at_once(
    wrong: set[Path], unknown: set[Path], data: st.DataObject
) -> None:
    tree = _valid()
    expected = set()
    for path in wrong:
        value = data.draw(WRONG[path])
        assume(not (isinstance(value, str) and value in CHOICES))
        _set(tree, path, value)
        expected.add(_written(path))
    for path in unknown:
        _set(tree, (*path, "zzz"), 1)
        expected.add(_written((*path, "zzz")))
    found = _problems(tree)
    assert {problem.partition(": ")[0] for problem in found} == expected
    assert list(found) == sorted(set(found))


@given(st.sampled_from(["encoder", "bridge", "decoder", "recipe"]))
def test_missing_fields_are_named(name: str) -> None:
    tree = _valid()
    del tree[name]
    assert _problems(tree) == (f"{name}: missing",)


@given(st.sampled_from(["encoder", "bridge", "decoder"]), containers | st.integers())
def test_a_part_needs_a_name(role: str, value: Any) -> None:
    tree = _valid()
    tree[role] = value
    (problem,) = _problems(tree)
    assert problem.startswith(f"{role}: expected ")


def test_parsing_leaves_the_tree_alone() -> None:
    tree = _valid()
    before = copy.deepcopy(tree)
    _parsed(tree)
    assert tree == before

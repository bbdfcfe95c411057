"""A config that names a part of a plugin that is not installed says which one would bring it."""

from __future__ import annotations

import pytest

from rpiae import runs
from rpiae.core.errors import ConfigError, UnknownNameError


def test_a_name_and_what_would_bring_it() -> None:
    tree = {"bridge": "elsewhere", "requires": ["rpiae-elsewhere", "attrs"]}
    with pytest.raises(UnknownNameError) as caught:
        runs.resolve(tree, source="run.toml")
    assert "no bridge named 'elsewhere'" in str(caught.value)
    assert "run.toml requires rpiae-elsewhere: pip install rpiae-elsewhere" in str(caught.value)
    assert "attrs" not in str(caught.value)


def test_among_other_problems() -> None:
    stage = {"name": "a", "train": ["decoder"], "steps": 1, "terms": [{"loss": {"name": "far"}}]}
    tree = {"recipe": {"name": "r", "stages": [stage]}, "requires": ["rpiae-far"], "seed": "x"}
    with pytest.raises(ConfigError) as caught:
        runs.resolve(tree, source="run.toml")
    assert caught.value.problems[-1] == "run.toml requires rpiae-far: pip install rpiae-far"
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("requires", [[], ["attrs"], [""], [3], "rpiae-far"])
def test_what_is_installed_or_no_name_is_not_blamed(requires: object) -> None:
    with pytest.raises((UnknownNameError, ConfigError)) as caught:
        runs.resolve({"bridge": "far", "requires": requires})
    assert "pip install" not in str(caught.value)


def test_requirements_that_are_met_elsewhere_do_not_stop_a_run() -> None:
    assert runs.resolve({"requires": ["rpiae-far"]}).config.requires == ("rpiae-far",)

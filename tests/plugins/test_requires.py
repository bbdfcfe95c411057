"""A config that names a part of a plugin that is not installed says which one would bring it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpiae import runs
from rpiae.core.config import read_toml
from rpiae.core.errors import CheckpointError, ConfigError, UnknownNameError
from rpiae.core.tokenizer import RPiAE
from tests.plugins.test_discovery import install

PLUGIN = """
from rpiae import Entry, Manifest
MANIFEST = Manifest(api=1, entries={"encoders": (Entry(
    name="elsewhere", target="rpiae.encoders.configs:VitEncoderConfig", summary="a ViT",
),)})
"""


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


def test_a_run_writes_down_what_it_requires(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "rpiae-elsewhere", PLUGIN)
    (tmp_path / "run.toml").write_text(
        '[encoder]\nname = "elsewhere"\nwidth = 32\ndepth = 1\nnum_heads = 2\n'
        '[bridge]\nname = "vb4"\n[decoder]\nname = "vit"\nwidth = 32\ndepth = 1\nnum_heads = 2\n'
        '[recipe]\nname = "quick"\nmax_steps = 1\nbatch_size = 2\n'
    )
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, "-m", "rpiae", "build", "--config", "run.toml", "--out", "a"],
        cwd=tmp_path, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert read_toml(tmp_path / "a" / "config.toml")["requires"] == ["rpiae-elsewhere"]
    with pytest.raises(UnknownNameError, match="pip install rpiae-elsewhere"):
        runs.resumed_config(tmp_path / "a")
    with pytest.raises(CheckpointError, match="pip install rpiae-elsewhere"):
        RPiAE.from_pretrained(tmp_path / "a")

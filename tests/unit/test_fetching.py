"""All that is loaded is named at once, and fetched before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rpiae import runs
from rpiae.cli.main import main
from rpiae.core.config.tree import Tree, dump_toml
from rpiae.core.errors import FetchError
from rpiae.core.model.fetching import fetch_all, needed
from rpiae.core.model.resolve import part_config
from rpiae.studies.configs import parse_study
from rpiae.studies.planning import plan_study, study_loading
from tests.short_run import short_run, write_images


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def tree(tmp_path: Path) -> Tree:
    """A run that loads three things, none of which is there."""
    images = write_images(tmp_path / "images", count=4)
    made = short_run(images, tmp_path / "out")
    made["encoder"], made["bridge"] = "dinov2-s", "identity"
    made["recipe"] = {
        "name": "mine",
        "stages": [
            {"name": "a", "train": ["decoder"], "use_bridge": False, "steps": 1, "terms": [
                {"loss": "l1"}, {"loss": "lpips"},
                {"loss": {"name": "adversarial", "critic": {"name": "dino", "backbone": "dino-s8"}}},
            ]},
        ],
    }  # fmt: skip
    return made


WHAT = ("dinov2-s", "lpips", "dino-s8")


def test_a_run_names_all_and_starts_nothing(tmp_path: Path) -> None:
    given = tree(tmp_path)
    with pytest.raises(FetchError, match=r"3 of 3 files of weights cannot be had") as caught:
        list(runs.run(given))
    for what in WHAT:
        assert what in str(caught.value)
    assert str(caught.value).count("Ways out") == 0
    assert not (tmp_path / "out" / "config.toml").exists()


def test_the_command_that_gets_all_is_named_and_names_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(dump_toml(tree(tmp_path)))
    assert main(["build", "--config", str(config), "--set", "seed=2"]) == 1
    said = capsys.readouterr().err
    assert f"rpiae fetch --config {config} --set seed=2" in said
    assert main(["fetch", "--config", str(config), "--set", "seed=2"]) == 1
    again = capsys.readouterr().err
    for what in WHAT:
        assert what in said
        assert what in again


def test_a_plan_says_what_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.toml"
    config.write_text(dump_toml(tree(tmp_path)))
    assert main(["build", "--config", str(config), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "loads encoder 'dinov2-s': to be downloaded" in out
    assert "loads loss 'lpips': to be downloaded" in out


def test_nothing_is_downloaded_to_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it went to the network")

    monkeypatch.setattr("rpiae.core.runtime.download._download", never)
    monkeypatch.setattr("urllib.request.urlopen", never)
    (found,) = needed([part_config("losses", "lpips")])  # type: ignore[list-item]  # it is a loss
    assert found.path is None


def test_a_study_and_its_evaluation(tmp_path: Path) -> None:
    base = tree(tmp_path)
    del base["out"]
    study = parse_study(
        {"name": "s", "base": base, "vary": {"encoder": ["dinov2-s", "tiny"]},
         "evaluation": {"metrics": ["psnr", "rfd:dinov2-b", "lpips"]}}, source="s",
    )  # fmt: skip
    parts = study_loading(study, plan_study(study, tmp_path / "out"))
    with pytest.raises(FetchError) as caught:
        fetch_all(parts)
    for what in (*WHAT, "dinov2-b"):
        assert what in str(caught.value)


def test_what_is_there_is_said_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "tiny", "l1", "rfd:tiny"]) == 0
    assert capsys.readouterr().out.count("tiny.safetensors") == 2
    assert main(["fetch", "l1"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out
    assert main(["fetch"]) == 2
    assert "name parts" in capsys.readouterr().err

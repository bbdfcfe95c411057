"""Parts that a notebook registered: a run with them is trained, evaluated and measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rpiae.core.errors import UnknownNameError
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.saved import evaluate_saved
from rpiae.evaluation.trained_run import read_run
from tests.short_run import short_run, write_images

#: What somebody writes into a notebook; no other process has these parts.
NOTEBOOK = '''
import json, sys
from typing import ClassVar
from attrs import frozen
from torch import nn
from rpiae import runs
from rpiae.core.training import events
from rpiae.core.config.parts import CriticConfig, LossConfig, MetricConfig
from rpiae.core.registry.registry import registry
from rpiae.data.configs import FolderDatasetConfig
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.saved import evaluate_saved
from rpiae.evaluation.pixels import Psnr

@registry("losses").register("my-loss")
@frozen(kw_only=True)
class MyLoss(LossConfig):
    """Mean absolute error."""
    needs: ClassVar = frozenset({"pixels"})
    def build(self):
        return lambda context: (context.reconstruction - context.images).abs().mean()

@registry("datasets").register("my-data")
@frozen(kw_only=True)
class MyData(FolderDatasetConfig):
    """A folder by another name."""

class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(3, 1, 3)

    def forward(self, images):
        return self.score(images).flatten(1)

@registry("critics").register("my-critic")
@frozen(kw_only=True)
class MyCritic(CriticConfig):
    """One convolution."""
    def build(self):
        return Convolution()

@registry("metrics").register("my-metric")
@frozen(kw_only=True)
class MyMetric(MetricConfig):
    """PSNR by another name."""
    def build(self):
        return Psnr()

tree = json.loads(sys.argv[1])
*_, last = runs.run(tree)
assert type(last).__name__ == "RunEnded", last
found = evaluate_saved(last.folder, EvaluationConfig(metrics=("my-metric",), data=tree.get("measure", "")))
print(json.dumps({"summary": last.summary["psnr"], "metrics": dict(found.metrics)}))
'''  # fmt: skip

GAME = {"name": "adversarial", "critic": {"name": "my-critic"}}


def stage(*terms: dict[str, Any]) -> dict[str, Any]:
    only = {"name": "all", "train": ["encoder", "bridge", "decoder"], "steps": 2, "terms": terms}
    return {"name": "mine", "batch_size": 4, "stages": [only]}


@pytest.mark.parametrize(
    ("part", "data"),
    [("losses", "folder"), ("dataset", "my-data")],
)
def test_a_run_with_a_notebooks_parts_is_evaluated(tmp_path: Path, part: str, data: str) -> None:
    tree = short_run(write_images(tmp_path / "images"), tmp_path / "run")
    own = part == "losses"
    tree["recipe"] = stage(
        {"loss": "my-loss" if own else "l1", "reference": True}, *([{"loss": GAME}] if own else [])
    )
    tree["data"] |= {"name": data, "workers": 0}
    notebook = tmp_path / "notebook.py"
    notebook.write_text(NOTEBOOK)
    done = subprocess.run(
        [sys.executable, str(notebook), json.dumps(tree)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["metrics"]["psnr"] == pytest.approx(found["summary"], abs=0.01)

    # Elsewhere the tokenizer is measured on what is known there.
    config = EvaluationConfig(metrics=("psnr",), data=f"folder:{tmp_path / 'images'}")
    assert evaluate_saved(tmp_path / "run", config).metrics["psnr"] > 0
    assert read_run(tmp_path / "run").seed == 3
    if data == "my-data":
        with pytest.raises(UnknownNameError, match="my-data"):
            evaluate_saved(tmp_path / "run", EvaluationConfig(metrics=("psnr",)))

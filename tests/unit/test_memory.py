"""What a run takes at the least is compared with what is there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from rpiae import runs
from rpiae.cli import main
from rpiae.core.errors import UsageError
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime import memory
from rpiae.core.runtime.memory import MemoryNeed, available_memory, check_memory, memory_need
from tests.toys import ENCODERS

CPU = torch.device("cpu")
HUGE = (
    "--set", "decoder.width=16384", "--set", "decoder.num_heads=4", "--set", "decoder.depth=400",
    "--set", "decoder.mlp_hidden=65536",
)  # fmt: skip


def test_weights_pivot_and_the_largest_stages_state() -> None:
    with torch.device("meta"):
        roles = {"encoder": nn.Linear(10, 10, bias=False), "bridge": nn.BatchNorm1d(5)}
    need = memory_need(roles, {"a": 7, "b": 100, "c": 0})
    assert need.pivot == 400
    assert need.model == 400 + 4 * (5 + 5) + 4 * (5 + 5) + 8
    assert need.training == 100 * 4 * 4
    assert need.stage == "b"
    assert need.total == need.model + need.pivot + need.training


def test_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    need = MemoryNeed(model=2**30, pivot=2**29, training=2**31, stage="tune")
    monkeypatch.setattr(memory, "available_memory", lambda device: 3 * 2**30)
    with pytest.raises(UsageError) as caught:
        check_memory(need, CPU)
    for part in ("3.50 GiB of memory on cpu", "1.00 GiB", "stage tune 2.00 GiB", "3.00 GiB are"):
        assert part in str(caught.value)
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    check_memory(need, CPU)


def test_this_machine_tells_what_it_has() -> None:
    there = available_memory(CPU)
    assert there is None or 2**26 < there < 2**50


@pytest.mark.parametrize("verb", ["build", "bench"])
def test_a_run_that_cannot_fit_is_refused_before_it_is_built(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*_: object, **__: object) -> RPiAE:
        raise AssertionError("built")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rpiae.runs.running.build_tokenizer", build)
    began = time.process_time()
    assert main([verb, "--bridge", "vb4", "--data", "sample", *HUGE]) == 2
    assert "this run needs at least" in capsys.readouterr().err
    assert time.process_time() - began < 60
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    resolved = runs.resolve({"encoder": ENCODERS["vit"], "bridge": "vb4", "recipe": "quick"})
    need = runs.plan(resolved).memory
    assert need.total > need.model > need.pivot > 0
    assert main(["build", "--dry-run", "--data", "sample", "--bridge", "vb4", *HUGE]) == 0
    assert "GiB at the least, and activations on top" in capsys.readouterr().out

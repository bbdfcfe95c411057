"""``compile``: blocks compiled in training steps, and in nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from rpiae import runs
from rpiae.cli import main
from rpiae.core.errors import TrainingError
from rpiae.core.model import blocks
from rpiae.core.model.blocks import compiling, through
from rpiae.core.training import events
from rpiae.runs import generating
from tests.short_run import (
    ADAPTIVE,
    short_generator_run,
    short_run,
    short_video_run,
    write_images,
    write_latents,
    write_videos,
)

RUNS: dict[str, tuple[Callable[[Path], Path], Callable[..., dict[str, Any]], Any]] = {
    "tokenizer": (write_images, short_run, runs.run),
    "video": (write_videos, short_video_run, runs.run),
    "generator": (write_latents, short_generator_run, generating.run_generator),
}

#: torch looks at gradients of what has none while it traces, and its warning is an error here.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

needs_a_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile makes C++ here, and there is no g++"
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    counters.clear()


def traced_only(monkeypatch: pytest.MonkeyPatch, backend: Any = "aot_eager") -> None:
    """Have blocks traced and not made into C++, which takes long."""
    compiled = torch.compile(blocks._call, dynamic=False, backend=backend)
    monkeypatch.setattr(blocks, "_compiled", lambda: compiled)


def curve(happened: Iterator[events.Event]) -> list[float]:
    return [event.total for event in happened if isinstance(event, events.StepDone)]


@pytest.mark.parametrize(
    "kind", ["generator", "tokenizer", pytest.param("video", marks=pytest.mark.slow)]
)
def test_the_curve_is_that_of_eager_code(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced_only(monkeypatch)
    written, tree, run = RUNS[kind]
    data = written(tmp_path / "data")
    plain = curve(run(tree(data, tmp_path / "plain")))
    assert not counters["stats"]["unique_graphs"]
    assert curve(run(tree(data, tmp_path / "compiled") | {"compile": True})) == pytest.approx(
        plain, rel=1e-5
    )
    assert counters["stats"]["unique_graphs"]
    if kind == "tokenizer":  # has many kinds of blocks, which take long to trace
        return
    less_memory = tree(data, tmp_path / "less", recompute=True) | {"compile": True}
    assert curve(run(less_memory)) == pytest.approx(plain, rel=1e-5)


@needs_a_compiler
@pytest.mark.parametrize("kind", ["generator", pytest.param("tokenizer", marks=pytest.mark.slow)])
def test_a_compiled_run_resumes_to_the_bit(kind: str, tmp_path: Path) -> None:
    written, tree, run = RUNS[kind]
    go_on = generating.resume_generator if kind == "generator" else runs.resume
    data = written(tmp_path / "data")

    def digests(happened: Any) -> list[dict[str, str]]:
        return [dict(e.digests) for e in happened if isinstance(e, events.StageEnded)]

    whole = digests(run(tree(data, tmp_path / "whole") | {"compile": True}))
    happened = run(tree(data, tmp_path / "broken") | {"compile": True})
    for event in happened:
        if isinstance(event, events.CheckpointSaved) and event.step == 4:
            break
    happened.close()
    torch.compiler.reset()  # as in another process
    assert digests(go_on(tmp_path / "broken")) == whole[-len(whole) :]
    assert whole


@pytest.mark.parametrize("resumed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_graphs_that_are_kept_after_others_that_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    """An adaptive weight keeps the graph once its warm-up is over; a resumed run may begin with that."""
    traced_only(monkeypatch)
    written, tree, _ = RUNS["tokenizer"]
    data = written(tmp_path / "data")

    def trained(name: str, *, compile: bool, until: int | None = None) -> list[float]:
        asked = tree(data, tmp_path / name, checkpoint_every=1) | {"compile": compile}
        del asked["recipe"]["max_steps"]
        lengths = [f"recipe.stages[{i}].steps={n}" for i, n in enumerate((4, 1, 1))]
        happened = runs.run(runs.resolve(asked, overrides=(ADAPTIVE, *lengths)))
        found = []
        for event in happened:
            if isinstance(event, events.StepDone):
                found.append(event.total)
            if isinstance(event, events.CheckpointSaved) and event.step == until:
                happened.close()  # type: ignore[attr-defined]  # a generator
                break
        return found

    plain = trained("plain", compile=False)
    whole = trained("whole", compile=True)
    assert whole == pytest.approx(plain, rel=1e-5)
    if not resumed:
        return
    begun = trained("broken", compile=True, until=3)
    torch.compiler.reset()
    assert begun + curve(runs.resume(tmp_path / "broken")) == whole


class Doubled(nn.Module):
    def forward(self, values: Tensor, by: int = 2) -> Tensor:
        return by * values


def test_every_shape_is_compiled_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    traced_only(monkeypatch)
    with compiling(True):
        for length in (3, 4, 5, 4, 3):
            assert through(Doubled(), torch.ones(length)).tolist() == [2.0] * length
    assert counters["stats"]["unique_graphs"] == 3
    through(Doubled(), torch.ones(9))
    with compiling(False):
        through(Doubled(), torch.ones(9))
    assert counters["stats"]["unique_graphs"] == 3


def test_more_shapes_than_are_kept_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself goes on with other operations, and what a run gives depends on where it began."""
    traced_only(monkeypatch)
    monkeypatch.setattr(blocks, "MOST_SHAPES", 2)

    def all_of_them() -> None:
        with compiling(True):
            for length in (3, 4, 5):
                through(Doubled(), torch.ones(length))

    with pytest.raises(TrainingError, match=r"more than 2 kinds of blocks .* leave out --compile"):
        all_of_them()
    assert through(Doubled(), torch.ones(1)).item() == 2
    assert counters["stats"]["unique_graphs"] == 2


def test_where_nothing_can_be_compiled_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(*_: Any) -> Any:
        raise RuntimeError("no working C++ compiler")

    traced_only(monkeypatch, refusing)
    latents = write_latents(tmp_path / "data")
    run = ["diffuse", str(latents), "--generator", "dit-t", "--device", "cpu", "--compile"]
    sizes = ["--set", "generator.width=16", "--set", "generator.num_heads=2"]
    assert main([*run, *sizes, "--out", str(tmp_path / "g")]) == 1
    said = capsys.readouterr().err
    assert "torch.compile cannot compile the blocks here: " in said
    assert "no working C++ compiler" in said
    assert "Traceback" not in said
    assert "compile = true" in (tmp_path / "g" / "config.toml").read_text()


def test_a_run_may_change_its_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced_only(monkeypatch)
    data = write_latents(tmp_path / "data")
    happened = generating.run_generator(short_generator_run(data, tmp_path / "g"))
    for event in happened:
        if isinstance(event, events.CheckpointSaved):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    assert not counters["stats"]["unique_graphs"]
    said = list(generating.resume_generator(tmp_path / "g", changes={"compile": True}))
    notices = [event.text for event in said if isinstance(event, events.Notice)]
    assert "changed since the run began: compile False → True" in notices
    assert counters["stats"]["unique_graphs"]


def test_the_example_of_digits_is_not_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diffuse", "--compile", "--dry-run"]) == 2
    assert "--compile" in capsys.readouterr().err

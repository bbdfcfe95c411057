"""What a checkpoint holds is checked against the running stage before it is used."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.training import events
from rpiae.core.training.checkpoint import list_checkpoints, read_state, write_state
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from tests.toys import toy_run

SHORT = ("recipe.max_steps=4", "recipe.batch_size=2", "recipe.checkpoint_every=1")
GAME = {"name": "adversarial", "critic": {"name": "patch", "width": 4, "halvings": 1}}
STAGES = {
    "name": "two",
    "stages": [
        {"name": "first", "train": ["encoder", "decoder"], "steps": 4, "use_bridge": False,
         "terms": [{"loss": "l1", "reference": True}], "optimiser": {"clip": 0.01}},
        {"name": "last", "train": ["decoder"], "steps": 4, "optimiser": {"clip": 0.01},
         "terms": [{"loss": "l1", "reference": True}, {"loss": GAME, "weight": 0.1}]},
    ],
}  # fmt: skip


def inputs(folder: Path) -> TrainerInputs:
    return toy_run(folder, "vit", "vb4", "vit", STAGES, *SHORT, "recipe.keep_checkpoints=20")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a whole run."""
    folder = tmp_path_factory.mktemp("whole")
    list(train(inputs(folder)))
    return folder / "checkpoints"


def on_its_own(whole: Path, folder: Path, name: str) -> Path:
    """One checkpoint in a run's folder."""
    (folder / "checkpoints").mkdir()
    return Path(shutil.copyfile(whole / name, folder / "checkpoints" / name))


WITHIN, ENDED = "stage1-step00000003.pt", "stage1-step00000000.pt"
Change = Callable[[dict[str, Any]], object]


def moments(state: dict[str, Any], part: str = "optimiser") -> dict[str, Any]:
    found: dict[str, Any] = state[part]
    return found["state"][0]


CHANGES: dict[str, tuple[str, Change]] = {
    "moments of another shape": (
        "exp_avg", lambda s: moments(s).update(exp_avg=torch.zeros(1))
    ),
    "moments of another dtype": (
        "exp_avg_sq", lambda s: moments(s).update(exp_avg_sq=moments(s)["exp_avg_sq"].double())
    ),
    "moments that are none": ("exp_avg", lambda s: moments(s).update(exp_avg=None)),
    "moments with more": ("AdamW", lambda s: moments(s).update(max_exp_avg_sq=torch.zeros(1))),
    "moments with less": ("AdamW", lambda s: moments(s).pop("exp_avg")),
    "moments of nobody": ("none", lambda s: s["optimiser"]["state"].update({99999: {}})),
    "step count": ("steps", lambda s: moments(s).update(step=torch.tensor(9.0))),
    "negative step count": ("steps", lambda s: moments(s).update(step=torch.tensor(-1.0))),
    "step count of another kind": ("step", lambda s: moments(s).update(step=3)),
    "other parameters": (
        "parameters", lambda s: s["optimiser"]["param_groups"][0].update(params=[0])
    ),
    "two groups": (
        "parameters", lambda s: s["optimiser"]["param_groups"].append({"params": []})
    ),
    "groups that are none": ("parameters", lambda s: s["optimiser"].update(param_groups={})),
    "no optimiser": ("optimiser", lambda s: s.pop("optimiser")),
    "an optimiser that is none": ("optimiser", lambda s: s.update(optimiser=None)),
    "critic's moments": (
        "exp_avg", lambda s: s["players"]["critic"]["optimiser"]["state"][0].update(exp_avg=torch.zeros(1))
    ),
    "critic's weights": (
        "critic", lambda s: s["players"]["critic"]["weights"].update(more=torch.zeros(1))
    ),
    "no critic": ("holds no critic", lambda s: s["players"].clear()),
    "players of another kind": ("players", lambda s: s.update(players=None)),
    "a weight that is none": ("weight of x", lambda s: s["balance"].update(x=torch.tensor(-1.0))),
    "a weight of another shape": ("weight of x", lambda s: s["balance"].update(x=torch.ones(2))),
    "weights of another shape": (
        "architecture",
        lambda s: s["model"].update({next(iter(s["model"])): torch.zeros(1)}),
    ),
    "weights of another dtype": (
        "float64", lambda s: s.update(model={n: t.double() for n, t in s["model"].items()})
    ),
    "weights missing": ("architecture", lambda s: s["model"].popitem()),
    "weights that are none": ("tensor", lambda s: s["model"].update({next(iter(s["model"])): 1})),
    "a list of weights": ("model", lambda s: s.update(model=[])),
    "average of another shape": (
        "average",
        lambda s: s["ema"]["values"].update({next(iter(s["ema"]["values"])): torch.zeros(1)}),
    ),
    "average of nobody": ("average", lambda s: s["ema"]["values"].update(x=torch.zeros(1))),
    "average missing": ("average", lambda s: s["ema"]["values"].popitem()),
    "average of another step": ("average", lambda s: s["ema"].update(step=1)),
    "average that is none": ("ema", lambda s: s.update(ema={"values": None, "step": 3})),
    "step of another kind": ("step", lambda s: s.update(step=3.0)),
    "another step": ("name says", lambda s: s.update(step=2)),
    "another stage": ("name says", lambda s: s.update(stage=0)),
    "seconds": ("seconds", lambda s: s.update(seconds=float("nan"))),
    "history of nothing": ("how stage first ended", lambda s: s.update(history={})),
    "history of another kind": ("history", lambda s: s.update(history=[1])),
    "history with other fields": (
        "how stage first ended", lambda s: s["history"]["first"].pop("digests")
    ),
    "history with other values": ("steps", lambda s: s["history"]["first"].update(steps="x")),
    "number of images": ("num_images", lambda s: s.update(num_images=-1)),
}  # fmt: skip


@pytest.mark.parametrize(("said", "change"), CHANGES.values(), ids=CHANGES)
def test_what_does_not_fit_is_refused_by_name(
    whole: Path, tmp_path: Path, said: str, change: Change
) -> None:
    path = on_its_own(whole, tmp_path, WITHIN)
    state = copy.deepcopy(read_state(path).state)
    change(state)
    write_state(path, state)
    with pytest.raises(CheckpointError, match=said) as caught:
        list(train(inputs(tmp_path), resume=True))
    assert WITHIN in str(caught.value)


def test_a_state_of_the_version_before_goes_on_where_only_the_model_learned(
    whole: Path, tmp_path: Path
) -> None:
    path = on_its_own(whole, tmp_path, "stage0-step00000003.pt")
    state = copy.deepcopy(read_state(path).state)
    del state["balance"], state["players"]
    write_state(path, state)
    steps = [e for e in train(inputs(tmp_path), resume=True) if isinstance(e, events.StepDone)]
    assert (steps[0].stage, steps[0].step) == ("first", 4)


Table = dict[Any, Any]

#: Where a state holds tensors: the table, and the key of a matrix in it.
HELD: dict[str, Callable[[dict[str, Any]], tuple[Table, Any]]] = {
    "exp_avg": lambda s: (with_matrix(s["optimiser"]["state"]), "exp_avg"),
    "exp_avg_sq": lambda s: (with_matrix(s["optimiser"]["state"]), "exp_avg_sq"),
    "critic's exp_avg": lambda s: (
        with_matrix(s["players"]["critic"]["optimiser"]["state"]),
        "exp_avg",
    ),
    "average": lambda s: (s["ema"]["values"], matrix(s["ema"]["values"])),
    "model": lambda s: (s["model"], matrix(s["model"])),
    "critic": lambda s: (
        s["players"]["critic"]["weights"],
        matrix(s["players"]["critic"]["weights"]),
    ),
}
UNUSABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "one value expanded": lambda t: torch.zeros(1).expand(t.shape),
    "transposed in memory": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every second value": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "without values": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}
ANYHOW = ("model", "critic")  # these are copied, however they lie in memory


def matrix(tensors: Table) -> Any:
    return next(name for name, each in tensors.items() if each.ndim > 1 and min(each.shape[:2]) > 1)


def with_matrix(kept: Table) -> Table:
    found: Table = kept[matrix({number: moments["exp_avg"] for number, moments in kept.items()})]
    return found


@pytest.mark.parametrize(
    ("held", "unusable"),
    [
        (held, unusable)
        for held in HELD
        for unusable in UNUSABLE
        if held not in ANYHOW or unusable in ("without values", "sparse")
    ],
)
def test_tensors_that_lie_in_memory_otherwise_are_refused(
    whole: Path, tmp_path: Path, held: str, unusable: str
) -> None:
    path = on_its_own(whole, tmp_path, WITHIN)
    state = read_state(path).state
    table, name = HELD[held](state)
    table[name] = UNUSABLE[unusable](table[name])
    write_state(path, state)
    with pytest.raises(CheckpointError, match=WITHIN):
        list(train(inputs(tmp_path), resume=True))


def test_the_step_count_has_a_value(whole: Path, tmp_path: Path) -> None:
    path = on_its_own(whole, tmp_path, WITHIN)
    state = read_state(path).state
    moments(state)["step"] = torch.zeros((), device="meta")
    write_state(path, state)
    with pytest.raises(CheckpointError, match="step, is of the meta device"):
        list(train(inputs(tmp_path), resume=True))


def test_the_end_of_a_stage_is_checked_too(whole: Path, tmp_path: Path) -> None:
    path = on_its_own(whole, tmp_path, ENDED)
    state = read_state(path).state
    state["ema"]["values"]["decoder.cls_token"] = torch.zeros(1)
    write_state(path, state)
    with pytest.raises(CheckpointError, match=r"moving average of decoder\.cls_token is .*\(1,\)"):
        list(train(inputs(tmp_path), resume=True))


def pickled(content: bytes) -> Callable[[Path], None]:
    """A file of torch whose pickle is something else."""

    def apply(path: Path) -> None:
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(f"{path}.new", "w") as made:
            for info in whole.infolist():
                broken = info.filename.endswith("data.pkl")
                made.writestr(info.filename, content if broken else whole.read(info))
        Path(f"{path}.new").rename(path)

    return apply


DAMAGE: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_bytes(b"hello"),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "another pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "a list": lambda path: torch.save([1], path),
    "numbers for keys": lambda path: torch.save({1: 2}, path),
    "nothing": lambda path: torch.save({}, path),
    "broken pickle": pickled(b"\x80\x02}q\x00X\xff\xff\xff\x7f"),
    "unfinished pickle": pickled(b"\x80\x02h\xff."),
    "pickle of zeros": pickled(bytes(30)),
    "no pickle": pickled(b""),
    "stack underflow": pickled(b"\x80\x02uuu."),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_an_unreadable_newest_checkpoint_is_passed_over_and_told_of(
    whole: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    shutil.copytree(whole, tmp_path / "checkpoints")
    damage(list_checkpoints(tmp_path / "checkpoints")[-1])
    seen = list(train(inputs(tmp_path), resume=True))
    told = [e.text for e in seen if isinstance(e, events.Notice)]
    assert any("stage2-step00000000.pt" in t and "the checkpoint before it" in t for t in told)
    assert [e.step for e in seen if isinstance(e, events.StepDone)] == [4]
    expected = read_state(whole / "stage2-step00000000.pt").state["history"]["last"]["digests"]
    assert [e.digests for e in seen if isinstance(e, events.StageEnded)][-1] == expected


def test_moments_of_another_shape_are_passed_over_for_the_checkpoint_before(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "stage2-step00000000.pt"
    path.unlink()
    newest = tmp_path / "checkpoints" / WITHIN
    state = read_state(newest).state
    moments(state)["exp_avg"] = torch.zeros(1)
    torch.save(state, newest)  # as an earlier version would have written it
    seen = list(train(inputs(tmp_path), resume=True))
    assert [e.step for e in seen if isinstance(e, events.StepDone)] == [3, 4]


@pytest.mark.parametrize("stop_after", [5, 6, 7])
def test_a_resumed_run_that_clips_ends_with_the_unbroken_runs_bits(
    whole: Path, tmp_path: Path, stop_after: int
) -> None:
    happened = train(inputs(tmp_path))
    count = 0
    for event in happened:
        count += isinstance(event, events.StepDone)
        if count == stop_after and isinstance(event, events.CheckpointSaved):
            break
    happened.close()
    seen = list(train(inputs(tmp_path), resume=True))
    expected = read_state(whole / "stage2-step00000000.pt").state["history"]["last"]["digests"]
    assert [e.digests for e in seen if isinstance(e, events.StageEnded)][-1] == expected


def test_a_player_has_the_gradients_of_what_it_trains_and_nobody_elses(tmp_path: Path) -> None:
    run = inputs(tmp_path)
    for parameter in run.task.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)  # somebody's from before
    norms: dict[str, list[set[str]]] = {"first": [], "last": []}
    largest = 0.0
    for event in train(run):
        if isinstance(event, events.StepDone):
            norms[event.stage].append(set(event.gradient_norms))
            largest = max(largest, *event.gradient_norms.values())
        if isinstance(event, events.StageEnded):
            left = {
                n.partition(".")[0]
                for n, p in run.task.model.named_parameters()
                if p.grad is not None
            }
            assert left == {"bridge"}, "the frozen bridge's are whoever put them there's"
    assert norms == {"first": [{"encoder", "decoder"}] * 4, "last": [{"decoder"}] * 4}
    assert largest < 1e3, "somebody's alone would be above 1e4"

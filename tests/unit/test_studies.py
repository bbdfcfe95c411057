"""Studies: what they expand to, how their runs are scheduled, and what survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import evolve

from rpiae import runs
from rpiae.cli.main import main
from rpiae.core.config.recipe import RunConfig
from rpiae.core.config.tree import Tree, dump_toml, unparse
from rpiae.core.errors import ConfigError, RpiaeError, UsageError
from rpiae.core.training import events
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.runs.stages import StageStore
from rpiae.studies import studies
from rpiae.studies.configs import StudyConfig, parse_study, read_study
from rpiae.studies.executors import LocalExecutor, SubmititExecutor
from rpiae.studies.jobs import STAGES_FOLDER, STOPPED, WRONG, is_as_planned, perform, write_job
from rpiae.studies.planning import PlannedRun, file_name, plan_study, shared_stages
from rpiae.studies.reading import read_results
from tests.short_run import short_run, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("studies") / "images")


def base(images: Path) -> Tree:
    tree = short_run(images, Path("unused"), max_steps=2)
    tree["data"]["workers"] = 0
    del tree["out"], tree["seed"]
    return tree


def study(images: Path, **facts: Any) -> StudyConfig:
    return parse_study({"name": "toy", "base": base(images), **facts}, source="toy.toml")


def names(given: StudyConfig) -> list[str]:
    return [row.name for row in plan_study(given, Path("out"))]


class TestPlanning:
    """Rows, axes and seeds to runs."""

    def test_axes_cross(self, images: Path) -> None:
        axes = {"bridge": ["vb4", "vb8"], "recipe.stages[0].noise": [0.0, 0.1]}
        rows = plan_study(study(images, vary=axes, seeds=[0, 3]), Path("out"))
        assert [row.name for row in rows] == [
            "bridge=vb4, noise=0.0", "bridge=vb4, noise=0.1",
            "bridge=vb8, noise=0.0", "bridge=vb8, noise=0.1",
        ]  # fmt: skip
        assert [run.seed for run in rows[3].runs] == [0, 3]
        config = rows[3].runs[1].resolved.config
        assert config.bridge.preset == "vb8"
        assert config.recipe.stages[0].noise == 0.1
        assert config.seed == 3
        folders = {run.folder for row in rows for run in row.runs}
        assert len(folders) == 8
        assert all(folder.is_relative_to("out/runs") for folder in folders)

    def test_rows_change_the_base_and_cross_axes(self, images: Path) -> None:
        rows = [
            {"name": "plain"},
            {"name": "weights", "vary": {"recipe.stages[0].terms[1].weight": [0.1, 1.0]}},
            {"name": "one", "seeds": [7], "set": {"bridge": {"name": "variational", "latent_channels": 2}}},
        ]  # fmt: skip
        planned = plan_study(study(images, rows=rows), Path("out"))
        assert [row.name for row in planned] == [
            "plain", "weights [weight=0.1]", "weights [weight=1.0]", "one"
        ]  # fmt: skip
        weight = planned[2].runs[0].resolved.config.recipe.stages[0].terms[1].weight
        assert weight == 1.0
        assert planned[3].runs[0].seed == 7
        assert planned[3].runs[0].resolved.config.bridge.latent_channels == 2  # type: ignore[attr-defined]  # of this part

    def test_recipes_of_the_studys_own(self, images: Path) -> None:
        stage = {"name": "only", "train": ["encoder", "decoder"], "use_bridge": False, "steps": 3,
                 "terms": [{"loss": "l1"}]}  # fmt: skip
        tree = base(images) | {"bridge": "identity"}
        del tree["recipe"]
        given = {"name": "toy", "base": tree, "recipes": {"mine": {"stages": [stage]}},
                 "rows": [{"name": "a", "set": {"recipe": "mine"}}]}  # fmt: skip
        ((run,),) = (row.runs for row in plan_study(parse_study(given, source="s"), Path("out")))
        assert run.resolved.config.recipe.label == "mine"
        assert [stage.name for stage in run.resolved.config.recipe.stages] == ["only"]

    def test_precision_is_not_left_to_the_machine(self, images: Path) -> None:
        tree = base(images)
        tree["precision"] = "auto"
        with pytest.raises(ConfigError, match="precision is auto"):
            plan_study(parse_study({"name": "t", "base": tree}, source="s"), Path("out"))
        del tree["precision"]
        ((run,),) = (
            row.runs for row in plan_study(parse_study({"name": "t", "base": tree}, source="s"), Path("o"))
        )  # fmt: skip
        assert run.resolved.config.precision == "fp32"

    def test_every_problem_at_once(self, images: Path) -> None:
        rows = [{"name": "a", "set": {"bridge": "vbx"}}, {"name": "b", "set": {"nois": 1}}]
        with pytest.raises(ConfigError) as error:
            plan_study(study(images, rows=rows), Path("out"))
        assert "row 'a': no bridge named 'vbx'" in str(error.value)
        assert "row 'b': nois: no such field" in str(error.value)
        with pytest.raises(ConfigError, match=r"rows: two are called 'a'"):
            plan_study(study(images, rows=[{"name": "a"}, {"name": "a"}]), Path("out"))
        comparison = {"name": "c", "first": "a", "second": "pivotd", "metrics": ["psnr"]}
        with pytest.raises(ConfigError, match=r"no row named 'pivotd'. Did you mean 'pivoted'"):
            plan_study(
                study(images, rows=[{"name": "a"}, {"name": "pivoted"}], comparisons=[comparison]),
                Path("out"),
            )
        with pytest.raises(ConfigError, match=r"vary.bridge: no values"):
            plan_study(study(images, vary={"bridge": []}), Path("out"))
        with pytest.raises(ConfigError, match=r"sedes: no such field.*'seeds'"):
            parse_study({"name": "t", "sedes": [1]}, source="s")

    def test_what_is_malformed_is_said(self, images: Path) -> None:
        for facts, message in (
            ({"seeds": []}, "it has no seeds"),
            ({"seeds": [0, 0]}, "two runs are toy-seed0"),
            ({"vary": {"bridge": "vb8"}}, r"vary\.bridge: expected a list, got 'vb8'"),
            ({"vary": "x"}, "vary: expected a table, got 'x'"),
            ({"recipes": {"a": "b"}}, r"recipes\.a: expected a table, got 'b'"),
        ):
            with pytest.raises(ConfigError, match=message):
                plan_study(study(images, **facts), Path("out"))

    def test_an_axis_of_tables(self, images: Path) -> None:
        bridges = [{"name": "variational", "latent_channels": n} for n in (2, 6)]
        assert names(study(images, vary={"bridge": bridges})) == [
            "bridge=variational latent_channels=2", "bridge=variational latent_channels=6"
        ]  # fmt: skip

    def test_losses_can_be_left_out(self, images: Path) -> None:
        ((run,),) = (r.runs for r in plan_study(study(images, without=["kl"]), Path("out")))
        losses = {t.loss.name for s in run.resolved.config.recipe.stages for t in s.terms}
        assert "kl" not in losses
        assert "l1" in losses

    def test_shared_stages(self, images: Path) -> None:
        rows = plan_study(study(images, vary={"bridge": ["vb4", "vb8"]}), Path("out"))
        one, other = (row.runs[0].stages for row in rows)
        assert one[0] == other[0]
        assert set(one[1:]).isdisjoint(other)
        assert shared_stages(rows) == {*one[:2], *other[:2]}

    def test_the_projects_study_is_one(self, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = Path(__file__).parents[2]
        monkeypatch.chdir(root)
        given = read_study(root / "studies" / "claims.toml")
        rows = {row.name: row for row in plan_study(given, Path("out"))}
        assert {"rae", "unpivoted", "pivoted", "rpiae-vb8", "joint-vb8", "vae-vb8"} <= rows.keys()
        for name in ("rae", "unpivoted", "pivoted", "rpiae-vb8", "joint-vb8"):
            assert len(rows[name].runs) == 3, "claims compare these"
        # Rows that a claim compares differ in nothing but what the claim is about.
        plain, other = (rows[n].runs[0].resolved.config for n in ("pivoted", "unpivoted"))
        (one,), (two,) = plain.recipe.stages, other.recipe.stages
        assert [t.loss.name for t in one.terms] == ["l1", "pivot"]
        assert [t.loss.name for t in two.terms] == ["l1"]
        assert (one.steps, one.optimiser, one.noise) == (two.steps, two.optimiser, two.noise)
        passes = {
            name: sum((s.steps or 0) * s.batch_size for s in row.runs[0].resolved.config.recipe.stages)
            for name, row in rows.items() if "main" in row.groups
        }  # fmt: skip
        assert len(set(passes.values())) == 1, passes


class TestSeeds:
    """Whoever names seeds is heard, and two who do are told."""

    def planned(self, given: StudyConfig) -> list[tuple[str, int, int]]:
        rows = plan_study(given, Path("out"))
        return [(r.name, run.seed, run.resolved.config.seed) for r in rows for run in r.runs]

    def test_a_field_like_any_other(self, images: Path) -> None:
        assert self.planned(study(images)) == [("toy", 0, 0)]
        assert self.planned(study(images, vary={"seed": [1, 2]})) == [
            ("seed=1", 1, 1),
            ("seed=2", 2, 2),
        ]
        assert self.planned(study(images, rows=[{"name": "a", "set": {"seed": 4}}])) == [
            ("a", 4, 4)
        ]
        assert self.planned(study(images, rows=[{"name": "a", "vary": {"seed": [3]}}]))[0][1:] == (
            3,
            3,
        )
        in_base = study(images)
        in_base.base["seed"] = 6
        assert self.planned(in_base) == [("toy", 6, 6)]
        rows = plan_study(study(images, vary={"seed": [1, 2]}), Path("out"))
        assert rows[0].runs[0].address != rows[1].runs[0].address

    @pytest.mark.parametrize(
        "facts",
        [
            {"vary": {"seed": [1]}, "seeds": [0]},
            {"rows": [{"name": "a", "set": {"seed": 1}, "seeds": [0]}]},
            {"rows": [{"name": "a", "set": {"seed": 1}}], "seeds": [0]},
            {"seeds": [0], "in_base": 1},
        ],
    )
    def test_two_that_name_seeds(self, images: Path, facts: Tree) -> None:
        in_base = facts.pop("in_base", None)
        given = study(images, **facts)
        if in_base is not None:
            given.base["seed"] = in_base
        with pytest.raises(ConfigError, match="seeds are listed too: leave out one"):
            plan_study(given, Path("out"))

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--vary", "seed=1,2"], [1, 2]),
            (["--vary", "bridge=vb4", "--set", "seed=5"], [5]),
            (["--vary", "bridge=vb4", "--seed", "5"], [5]),
            (["--vary", "bridge=vb4", "--seeds", "2"], [0, 1]),
            (["--vary", "bridge=vb4"], [7]),
        ],
    )
    def test_on_the_command_line(
        self, images: Path, tmp_path: Path, options: list[str], expected: list[int],
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        config = tmp_path / "run.toml"
        config.write_text(dump_toml(base(images) | {"seed": 7}))
        assert main(["ablate", "--config", str(config), *options, "--dry-run", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [run["seed"] for row in rows for run in row["runs"]] == expected
        assert len({run["address"] for row in rows for run in row["runs"]}) == len(expected)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--vary", "seed=1,2", "--seeds", "2"], "--vary seed and --seeds both say"),
            (["--vary", "seed=1", "--seed", "2"], "--seed and --vary seed both say"),
            (["--vary", "bridge=vb4", "--set", "seed=1", "--seeds", "2"], "--set seed and --seeds"),
            (
                ["--vary", "bridge=vb4", "--seed", "1", "--seeds", "2"],
                "--seed and --seeds both say",
            ),
            (["--vary", "[0]=1,2"], "a run's tree begins with names"),
            (["--vary", "out=a,b"], "where runs are written is the study's own"),
            (
                ["--vary", "bridge=vb4", "--set", "out=a"],
                "where runs are written is the study's own",
            ),
            (["--vary", "bridge=vb4", "--seeds", "100000"], "at most 1,000 runs"),
            (
                ["--vary", f"recipe.max_steps={','.join(map(str, range(1, 1102)))}"],
                "it has 1,101 runs",
            ),
            (["--vary", "bridge=vb4", "--processes", "0"], "whole number of at least 1"),
        ],
    )
    def test_what_contradicts_or_is_too_much(
        self, images: Path, tmp_path: Path, options: list[str], message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        config = tmp_path / "run.toml"
        config.write_text(dump_toml(base(images)))
        try:
            code = main(["ablate", "--config", str(config), *options, "--dry-run"])
        except SystemExit as ended:
            code = int(str(ended.code))
        assert code == 2
        assert message in capsys.readouterr().err

    def test_every_field_of_a_run_holds_or_is_refused(self, images: Path) -> None:
        values: Tree = {
            "encoder": {"name": "vit", "width": 48, "depth": 1, "num_heads": 2}, "bridge": "vb8",
            "decoder": "vit-t", "recipe": "quick", "data": "sample", "seed": 5, "device": "auto",
            "precision": "bf16", "compile": True, "wandb_project": "mine", "requires": ["pip"],
            "imports": ["json"],
        }  # fmt: skip
        refused = {"out", "init", "init_parts"}  # without init, the last two have nothing to say
        assert values.keys() | refused == {a.name for a in attrs.fields(RunConfig)}
        for name, value in values.items():
            ((run,),) = (
                r.runs for r in plan_study(study(images, vary={name: [value]}), Path("out"))
            )
            found = unparse(run.resolved.config)[name]
            assert (
                found == value
                or value in (found.get("name"), found.get("preset"), found)
                or (found | value == found)
            ), name
        for facts in ({"vary": {"out": ["a"]}}, {"vary": {"init": ["nowhere"]}},
                      {"vary": {"init_parts": [["encoder"]]}}):  # fmt: skip
            with pytest.raises(RpiaeError):
                plan_study(study(images, **facts), Path("out"))


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "..", ".hidden", "a/b", "\u4e2d" * 300, "x" * 500]
)
def test_names_of_rows_and_studies_are_no_paths(images: Path, tmp_path: Path, name: str) -> None:
    ((run,),) = (r.runs for r in plan_study(study(images, rows=[{"name": name}]), tmp_path))
    assert run.folder.parent == tmp_path / "runs"
    run.folder.mkdir(parents=True)
    (run.folder.parent / f"{run.folder.name}.json.part").touch()
    assert "/" not in file_name(name)
    assert not file_name(name).startswith(".")


def test_a_run_that_was_gone_on_with_otherwise_is_no_longer_its_rows(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = study(images)
    ((run,),) = (row.runs for row in plan_study(given, tmp_path))
    happened = runs.run(runs.resolve(unparse(run.resolved.config)))
    for event in happened:
        if isinstance(event, events.StageEnded):
            happened.close()
            break
    job = write_job(run, tmp_path, wanted=(), evaluation=EvaluationConfig())
    (run.folder / "config.toml").write_text(
        dump_toml(evolve(run.resolved.config, precision="bf16"))
    )
    assert perform(job) == WRONG
    assert (
        "no longer the run of its row: now it has precision 'fp32' \N{RIGHTWARDS ARROW} 'bf16'"
        in capfd.readouterr().err
    )
    (run.folder / "config.toml").write_text(dump_toml(run.resolved.config))
    (run.folder / "summary.json").write_text('{"address": ""}')
    assert perform(job) == WRONG
    assert "under other settings for a while" in capfd.readouterr().err
    assert not is_as_planned(run.folder, run.address)


def test_files_that_would_be_waited_for_are_none_of_ours(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "summary.json")
    assert not is_as_planned(tmp_path, "")
    assert perform(tmp_path / "summary.json") == WRONG
    assert "cannot read" in (said := capfd.readouterr().err)
    assert "it is a FIFO, not a regular file" in said


class FakeJob:
    """A job that ends when asked how it is for the ``delay``-th time."""

    def __init__(self, code: int, done: Callable[[], None], delay: int) -> None:
        self.code, self.done, self.delay = code, done, delay

    def outcome(self) -> int | None:
        self.delay -= 1
        if self.delay > 0:
            return None
        if self.code == 0:
            self.done()
        return self.code

    def stop(self) -> None:
        self.delay, self.code = 0, STOPPED


class FakeExecutor:
    """Pretends to run jobs.

    Attributes:
        started: names of the runs' folders in the order they were started.
        together: sets of runs that were at work at one time.
    """

    def __init__(
        self, out: Path, *, slots: int = 2, codes: dict[str, list[int]] | None = None
    ) -> None:
        self.slots = slots
        self.out = out
        self.codes = codes or {}
        self.started: list[str] = []

    def start(self, job: Path, log: Path, slot: int) -> FakeJob:
        assert 0 <= slot < self.slots
        self.started.append(job.stem)
        given = json.loads(job.read_text())
        store = StageStore(self.out / STAGES_FOLDER)

        def done() -> None:
            folder = Path(given["config"]["out"])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / runs.SUMMARY_FILE).write_text("{}")
            (folder / "evaluated").touch()
            for address in given["wanted"]:
                store._state(address, "cpu").parent.mkdir(exist_ok=True)
                store._state(address, "cpu").touch()

        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("some line\nrpiae: it went wrong\n")
        codes = next((c for name, c in self.codes.items() if name in job.stem), [])
        return FakeJob(codes.pop(0) if codes else 0, done, 2)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "INTERVAL", 0.0)
    monkeypatch.setattr(studies, "is_done", lambda folder, _: (folder / "evaluated").exists())


@pytest.mark.usefixtures("quickly")
class TestScheduling:
    """Which runs are started when, with jobs that do nothing."""

    def test_runs_wait_for_a_stage_that_another_trains(self, images: Path, tmp_path: Path) -> None:
        executor = FakeExecutor(tmp_path, slots=3)
        given = study(images, vary={"bridge": ["vb4", "vb8"]}, seeds=[0, 1])
        seen = list(studies.run_study(given, tmp_path, executor))
        order = [
            (type(e).__name__, e.run.row, e.run.seed)
            for e in seen if isinstance(e, (studies.JobStarted, studies.JobEnded))
        ]  # fmt: skip
        assert order[:2] == [("JobStarted", "bridge=vb4", 0), ("JobStarted", "bridge=vb4", 1)]
        assert order.index(("JobEnded", "bridge=vb4", 0)) < order.index(
            ("JobStarted", "bridge=vb8", 0)
        )
        assert isinstance(seen[-1], studies.StudyEnded)
        assert (seen[-1].done, seen[-1].failed) == (4, 0)

    def test_nothing_finished_is_repeated(self, images: Path, tmp_path: Path) -> None:
        given = study(images, vary={"bridge": ["vb4", "vb8"]})
        list(studies.run_study(given, tmp_path, FakeExecutor(tmp_path)))
        again = FakeExecutor(tmp_path)
        more = study(images, vary={"bridge": ["vb4", "vb8", "vb2"]})
        seen = list(studies.run_study(more, tmp_path, again))
        assert isinstance(seen[0], studies.StudyPlanned)
        assert (seen[0].done, seen[0].total) == (2, 3)
        assert len(again.started) == 1
        assert again.started[0].startswith("bridge=vb2")

    def test_a_crash_is_tried_once_more_and_then_reported(
        self, images: Path, tmp_path: Path
    ) -> None:
        given = study(images, vary={"bridge": ["vb4", "vb8", "vb2"]})
        executor = FakeExecutor(tmp_path, codes={"vb4": [-9], "vb8": [1, -9]})
        seen = list(studies.run_study(given, tmp_path, executor))
        said = [(e.run.row, e.state) for e in seen if isinstance(e, studies.JobEnded)]
        assert sorted(said) == [
            ("bridge=vb2", "done"), ("bridge=vb4", "crashed"), ("bridge=vb4", "done"),
            ("bridge=vb8", "crashed"), ("bridge=vb8", "failed"),
        ]  # fmt: skip
        assert len(executor.started) == 5
        results = read_results(tmp_path)
        row = results.row("bridge=vb8")
        assert row is not None
        assert row.runs[0].state == "failed"
        assert "SIGKILL" in row.runs[0].error
        # Asked again, the failed one alone is tried anew.
        later = FakeExecutor(tmp_path)
        seen = list(studies.run_study(given, tmp_path, later))
        assert len(later.started) == 1
        assert isinstance(seen[-1], studies.StudyEnded)
        assert seen[-1].done == 3

    def test_a_wrong_config_is_not_tried_again(self, images: Path, tmp_path: Path) -> None:
        executor = FakeExecutor(tmp_path, codes={"toy": [2]})
        seen = list(studies.run_study(study(images), tmp_path, executor))
        assert len(executor.started) == 1
        (ended,) = (e for e in seen if isinstance(e, studies.JobEnded))
        assert (ended.state, ended.error) == ("failed", "it went wrong")

    def test_a_signal_stops_all_and_the_rest_is_done_later(
        self, images: Path, tmp_path: Path
    ) -> None:
        given = study(images, vary={"bridge": ["vb4", "identity"]}, seeds=[0, 1])
        executor = FakeExecutor(tmp_path)
        seen = []
        for event in studies.run_study(given, tmp_path, executor):
            seen.append(event)
            if isinstance(event, studies.JobStarted) and len(executor.started) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(seen[-1], studies.StudyEnded)
        assert seen[-1].stopped
        assert [e.state for e in seen if isinstance(e, studies.JobEnded)] == ["stopped", "stopped"]
        rest = list(studies.run_study(given, tmp_path, FakeExecutor(tmp_path)))
        assert isinstance(rest[-1], studies.StudyEnded)
        assert rest[-1].done == 4

    def test_one_process_per_study(self, images: Path, tmp_path: Path) -> None:
        first = studies.run_study(study(images), tmp_path, FakeExecutor(tmp_path))
        next(first)
        with pytest.raises(UsageError, match="another rpiae ablate is at work"):
            next(studies.run_study(study(images), tmp_path, FakeExecutor(tmp_path)))
        first.close()


def summaries(out: Path) -> dict[str, Any]:
    return {p.parent.name: json.loads(p.read_text()) for p in out.glob("runs/*/summary.json")}


def test_killed_half_way_it_repeats_nothing(images: Path, tmp_path: Path) -> None:
    """For real: processes of its own, killed without warning once the first run is done."""
    toml = tmp_path / "study.toml"
    tree = study(images, vary={"bridge": ["vb4", "vb8"]})
    toml.write_text(dump_toml(tree))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "rpiae", "ablate", str(toml), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(out.glob("runs/*/evaluation.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    before = summaries(out)
    assert len(before) == 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 of them done already" in done.stderr
    after = summaries(out)
    assert len(after) == 2
    ((name, summary),) = before.items()
    assert after[name] == summary
    tuned = {s["stages"][0]["digests"]["ema"] for s in after.values()}
    assert len(tuned) == 1, "Stage I was trained once"
    logs = [log.read_text() for log in (out / "logs").iterdir()]
    assert sum("tune 2/2" in log for log in logs) == 1
    assert "2 of 2 runs done, 0 failed" in done.stdout


def test_a_job_ends_with_whoever_started_it(images: Path, tmp_path: Path) -> None:
    """The process of a run notices that the study's process is gone."""
    run: PlannedRun = plan_study(study(images), tmp_path)[0].runs[0]
    job = write_job(run, tmp_path, wanted=(), evaluation=EvaluationConfig())
    code = (
        "import sys, time; from pathlib import Path; from rpiae.studies.executors import LocalExecutor\n"
        f"LocalExecutor(1).start(Path({str(job)!r}), Path({str(tmp_path / 'log')!r}), 0)\n"
        "print('started', flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "started\n"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while any(str(job) in line for line in _command_lines()):
        assert time.monotonic() < deadline, "the job outlived its parent"
        time.sleep(0.2)


def _command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if "rpiae.studies" in line and " -c " not in line]


def test_through_submitit(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="extra submitit is not installed")
    out = tmp_path / "out"
    executor = SubmititExecutor(out / "submitit", 1, cluster="local", parameters={"timeout_min": 5})
    seen = list(studies.run_study(study(images), out, executor))
    assert isinstance(seen[-1], studies.StudyEnded)
    assert seen[-1].done == 1
    assert len(summaries(out)) == 1
    assert list((out / "submitit").glob("*_log.out"))


def test_a_submitted_job_that_is_stopped_saves_its_state(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="extra submitit is not installed")
    out = tmp_path / "out"
    long = study(images, vary={"recipe.max_steps": [100000]})
    executor = SubmititExecutor(out / "submitit", 1, cluster="local", parameters={"timeout_min": 5})
    happened = studies.run_study(long, out, executor)
    seen = [next(happened), next(happened)]
    log = out / "logs"
    deadline = time.monotonic() + 120
    while not any("tune" in path.read_text() for path in log.glob("*.log")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    seen += list(happened)
    (ended,) = (e for e in seen if isinstance(e, studies.JobEnded))
    assert ended.state == "stopped"
    run = ended.run.folder / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(run.glob("stage0-*.pt")):
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.2)


def test_what_submitit_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="extra submitit is not installed")
    with pytest.raises(UsageError, match="submitit cannot use cluster 'moon'"):
        SubmititExecutor(tmp_path, 1, cluster="moon", parameters={})


def test_processors_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert LocalExecutor(3)._threads == 2
    assert LocalExecutor(16)._threads == 1

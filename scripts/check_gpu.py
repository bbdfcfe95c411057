"""Check the toolkit on a GPU: tests, speeds, a profile, the default build, and the claims if time permits.

    python scripts/check_gpu.py --out checked                     # one card, at most 8 minutes
    python scripts/check_gpu.py --out checked --claims CIFAR10    # a folder with train.parquet, test.parquet
    python scripts/check_gpu.py --out checked --toy               # the same on a CPU, in small

Run it in a checkout whose dependencies are installed; no network is needed. It prints one Markdown
page and writes it as `gpu.md`, with all figures in `gpu.json`, below `--out`. Each check runs in a
process of its own and ends with its share of the time; one that fails or has no time left is
reported as that and does not hold up the next. The exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from attrs import define, field, frozen

ROOT = Path(__file__).resolve().parents[1]

#: The paper's model. Terms that load weights are left out: there is no network where this runs.
PAPER = (
    "--encoder", "dinov2-b", "--bridge", "vb64", "--recipe", "rpiae",
    "--without", "lpips,adversarial", "--set", "encoder.pretrained=false",
)  # fmt: skip
TOY = ("--encoder", "tiny", "--bridge", "vb4", "--decoder", "vit-t", "--recipe", "quick")

#: Seconds that a check whose time is up has to end in.
GRACE = 15

#: How many times the study's own length the claims are trained for.
LONGER = 4


@frozen(kw_only=True)
class Settings:
    """What is checked where.

    Attributes:
        toy: a CPU and small parts instead of a card and the paper's model.
        folder: where everything is written.
        claims: a folder with CIFAR-10 as ``train.parquet`` and ``test.parquet``, if there is one.
        runs: runs of the study at a time.
    """

    toy: bool
    folder: Path
    claims: Path | None
    runs: int

    @property
    def device(self) -> str:
        return "cpu" if self.toy else "cuda"


@define(kw_only=True)
class Outcome:
    """What a check found.

    Attributes:
        name: of the check.
        state: ``passed``, ``failed`` or ``skipped``.
        seconds: it took.
        lines: Markdown.
        figures: the same for programs.
    """

    name: str
    state: str = "passed"
    seconds: float = 0.0
    lines: list[str] = field(factory=list)
    figures: dict[str, Any] = field(factory=dict)


class Failed(Exception):
    """A check that did not come to a good end; the text says why."""


def command(
    settings: Settings,
    *arguments: str,
    name: str,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run Python with arguments; its standard output. What it says goes to a log file.

    Raises:
        Failed: if it fails or takes longer than ``seconds``.
    """
    log = settings.folder / f"{name}.log"
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True,
            env={**os.environ, "PYTHONPATH": search, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _stop(process)
            raise Failed(f"not done after {seconds:.0f} s: {_end(log)}") from None
    if process.returncode:
        raise Failed(f"exit code {process.returncode}: {_end(log) or out[-500:].strip()}")
    return out


def _stop(process: subprocess.Popen[str]) -> None:
    """Ask a process and all it started to end, and end those that do not."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, request)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE)
            return


def _end(log: Path) -> str:
    return " · ".join(log.read_text(errors="replace").strip().splitlines()[-3:])[-600:]


def machine(settings: Settings, seconds: float, found: Outcome) -> None:
    """The card, the versions and the commit."""
    doctor = json.loads(
        command(settings, "-m", "rpiae", "doctor", "--json", name="doctor", seconds=seconds)
    )
    facts = {
        "python": platform.python_version(),
        "commit": _said("git", "rev-parse", "--short=12", "HEAD"),
    }
    query = "--query-gpu=name,driver_version,memory.total"
    card = "" if settings.toy else _said("nvidia-smi", query, "--format=csv,noheader")
    found.figures = {"doctor": doctor, "card": card or "CPU", **facts}
    found.lines = [
        f"- card: {card or 'none, this is a rehearsal on a CPU'}",
        f"- commit {facts['commit'] or 'unknown'}, Python {facts['python']}",
        *(f"- {name}: {value}" for name, value in _flat(doctor)),
    ]


def _said(*arguments: str) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=20)
        return done.stdout.strip()
    return ""


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, tree


def tests(settings: Settings, seconds: float, found: Outcome) -> None:
    """The tests that are marked gpu."""
    report = settings.folder / "tests.xml"
    arguments = [
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "--device",
        settings.device,
        f"--junitxml={report}",
    ]
    where = ["tests/gpu"] if settings.toy else ["tests"]
    try:
        command(settings, *arguments, *where, name="tests", seconds=seconds)
    except Failed as failure:
        if not report.exists():
            raise
        found.state = "failed"
        found.lines.append(f"{failure}\n")
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    problems = []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        state = (
            "failed"
            if kinds & {"failure", "error"}
            else "skipped"
            if "skipped" in kinds
            else "passed"
        )
        counts[state] += 1
        if state == "failed":
            problems.append(f"{case.get('classname')}::{case.get('name')}")
    found.figures = {**counts, "problems": problems}
    found.lines.append(", ".join(f"{number} {state}" for state, number in counts.items()))
    found.lines += [f"- {problem}" for problem in problems]


def bench(settings: Settings, seconds: float, found: Outcome) -> None:
    """Every stage of the paper's model, with every attention backend that runs here, and compiled."""
    batch = "2" if settings.toy else "32"
    model = (*(TOY if settings.toy else PAPER), "--set", f"recipe.batch_size={batch}")
    wanted = (
        [("fp32", "sdpa", False)]
        if settings.toy
        else [
            ("bf16", "xformers", False), ("bf16", "sdpa", False), ("bf16", "sdpa", True), ("fp32", "sdpa", False),
        ]
    )  # fmt: skip
    found.figures["batch_size"] = int(batch)
    measured(settings, seconds, found, model, wanted)


def generators(settings: Settings, seconds: float, found: Outcome) -> None:
    """A generator's sampling step and training step, compiled and not."""
    model = (
        ("--generator", "dit-t", "--set", "recipe.batch_size=4", "--set", "generator.rows=4")
        if settings.toy
        else ("--generator", "dit-b", "--set", "recipe.batch_size=64")
    )
    precision = "fp32" if settings.toy else "bf16"
    wanted = [(precision, "sdpa", False), (precision, "sdpa", True)]
    measured(settings, seconds, found, model, wanted)


def measured(
    settings: Settings, seconds: float, found: Outcome, model: Sequence[str],
    wanted: Sequence[tuple[str, str, bool]],
) -> None:  # fmt: skip
    """`rpiae bench` of a model for every precision, attention backend, and compiled or not."""
    repeats = "1" if settings.toy else "5"
    ends = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    for precision, backend, compiled in wanted:
        try:
            said = command(
                settings, "-m", "rpiae", "bench", *model, "--device", settings.device, "--precision",
                precision, "--repeats", repeats, "--json", *(["--compile"] if compiled else []),
                name="-".join(
                    ["bench", model[1], precision, backend, *(["compiled"] if compiled else [])]
                ),
                seconds=ends - time.monotonic(), environment={"RPIAE_ATTENTION": backend},
            )  # fmt: skip
        except Failed as failure:
            found.state = "failed"
            how = ", compiled" if compiled else ""
            found.lines.append(f"{precision}, {backend}{how}: {failure}\n")
            continue
        rows += [
            {"backend": backend, "compiled": compiled, **row} for row in json.loads(said)["rows"]
        ]
    found.figures["rows"] = rows
    found.lines += [f"`rpiae bench {' '.join(model)}`", ""]
    found.lines += table(
        ("operation", "precision", "attention", "steps' blocks", "images/s", "of peak", "GiB"),
        (
            (
                row["operation"], row["precision"], row["backend"],
                "compiled" if row["compiled"] else "eager", f"{row['images_per_second']:.1f}",
                f"{row['peak_share']:.0%}", f"{row['memory'] / 2**30:.1f}" if row["memory"] else "?",
            )
            for row in rows
        ),
    )  # fmt: skip


def profile(settings: Settings, seconds: float, found: Outcome) -> None:
    """Where the time of one optimiser step of Stage I goes."""
    arguments = ["scripts/check_gpu.py", "--profile-step", *(["--toy"] if settings.toy else [])]
    figures = json.loads(command(settings, *arguments, name="profile", seconds=seconds))
    found.figures = figures
    found.lines = [
        f"Stage I, batch {figures['batch_size']}, {figures['precision']}: {figures['wall_ms']:.1f} ms a "
        f"step, of which kernels run {figures['busy_ms']:.1f} ms; {figures['calls']} of them.",
        "",
        *table(
            ("kernel or operator", "ms", "share", "calls"),
            (
                (f"`{row['name'][:80]}`", f"{row['ms']:.2f}", f"{row['ms'] / figures['busy_ms']:.0%}", row["calls"])
                for row in figures["rows"]
            ),
        ),
    ]  # fmt: skip


def build(settings: Settings, seconds: float, found: Outcome) -> None:
    """`rpiae build` as it is typed, on the card."""
    out = settings.folder / "default"
    short = ["--set", "recipe.max_steps=2", "--bridge", "vb4"] if settings.toy else []
    arguments = ["-m", "rpiae", "build", "--out", str(out), "--device", settings.device, *short]
    started = time.monotonic()
    command(settings, *arguments, name="build", seconds=seconds)
    took = time.monotonic() - started
    summary = json.loads((out / "summary.json").read_text())
    found.figures = {"summary": summary, "seconds": took}
    numbers = {
        k: v for k, v in summary.items() if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    found.lines = [f"{took:.0f} s with planning and evaluation.", ""]
    found.lines += table(
        ("figure", "value"), ((name, f"{value:.4g}") for name, value in numbers.items())
    )
    found.lines += ["", str(summary.get("verdict", ""))]


def claims(settings: Settings, seconds: float, found: Outcome) -> None:
    """studies/claims.toml, trained for longer, several runs at a time."""
    if settings.claims is None:
        found.state = "skipped"
        found.lines.append("no CIFAR-10 was named (--claims FOLDER)")
        return
    study = settings.folder / "claims.toml"
    study.write_text(tomli_w.dumps(longer_claims(settings.claims.resolve(), toy=settings.toy)))
    out = settings.folder / "claims"
    with contextlib.suppress(Failed):  # what has finished by then counts
        command(
            settings, "-m", "rpiae", "ablate", str(study), "--out", str(out), "--device",
            settings.device, "--processes", str(settings.runs), name="claims", seconds=seconds,
        )  # fmt: skip
    said = command(settings, "-m", "rpiae", "ablate", str(study), "--out", str(out), "--dry-run",
                   "--device", settings.device, name="claims-left", seconds=120)  # fmt: skip
    command(settings, "-m", "rpiae", "report", str(out), name="claims-report", seconds=120)
    page = next(iter(sorted(out.glob("*.md"))), None)
    found.figures = {"times": LONGER, "said": said, "report": page.read_text() if page else ""}
    found.lines = [f"{LONGER} times the study's length.", "", *said.strip().splitlines()[-3:]]
    if page:
        found.lines += ["", *page.read_text().splitlines()]


def longer_claims(data: Path, *, toy: bool) -> dict[str, Any]:
    """The study of the claims on data elsewhere, ``LONGER`` times as long (two steps as a toy)."""
    study = tomllib.loads((ROOT / "studies" / "claims.toml").read_text(encoding="utf-8"))
    study["base"]["data"]["path"] = str(data / "train.parquet")
    study["evaluation"] |= {
        "data": f"parquet:{data / 'test.parquet'}", "training": f"parquet:{data / 'train.parquet'}",
    }  # fmt: skip
    # The CNN of one of its distances is trained by a script of its own.
    study["evaluation"]["metrics"] = [m for m in study["evaluation"]["metrics"] if "cnn:" not in m]
    if toy:
        study["seeds"] = [0]
        study["evaluation"] |= {"metrics": ["psnr"], "num_images": 16, "num_training": 16}
    for recipe in study["recipes"].values():
        for stage in recipe["stages"]:
            stage["steps"] = 2 if toy else stage["steps"] * LONGER
            optimiser = stage.get("optimiser", {})
            if "warmup_steps" in optimiser:
                optimiser["warmup_steps"] = 0 if toy else optimiser["warmup_steps"] * LONGER
    return study


def table(heading: Sequence[str], rows: Any) -> list[str]:
    """A Markdown table."""
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def profile_step(toy: bool) -> dict[str, Any]:
    """Profile the third step of Stage I with the real trainer, on random images."""
    import torch
    from torch.profiler import ProfilerActivity

    from rpiae import runs
    from rpiae.core.model.build import build_tokenizer
    from rpiae.core.runtime.processes import Runtime
    from rpiae.core.training import events
    from rpiae.core.training.task import TrainerInputs
    from rpiae.core.training.trainer import train
    from rpiae.tasks.tokenizer.replica import PivotReplica
    from rpiae.tasks.tokenizer.task import TokenizerTask
    from rpiae.testing import SyntheticImages

    batch = 2 if toy else 32
    overrides = (
        f"recipe.batch_size={batch}", "recipe.max_steps=4", "recipe.evaluate_every=0",
        "recipe.checkpoint_every=0", "recipe.read_every=1",
    )  # fmt: skip
    tree: dict[str, Any] = {"encoder": "dinov2-b", "bridge": "vb64", "recipe": "rpiae"}
    if toy:
        tree = {"encoder": "tiny", "bridge": "vb4", "decoder": "vit-t", "recipe": "quick"}
    resolved = runs.resolve(
        tree, overrides=(*overrides, "encoder.pretrained=false"),
        without=() if toy else ("lpips", "adversarial"),
    )  # fmt: skip
    runtime = Runtime(device="cpu" if toy else "cuda", precision="fp32" if toy else "bf16")
    model = build_tokenizer(resolved.tokenizer, device=runtime.device, seed=0)
    pivot = build_tokenizer(resolved.tokenizer, device=runtime.device, seed=0).roles["encoder"]
    side = resolved.tokenizer.encoder_facts.image_size
    activities = [ProfilerActivity.CPU, *([] if toy else [ProfilerActivity.CUDA])]
    with tempfile.TemporaryDirectory() as folder:
        data = SyntheticImages(side, count=batch)
        replica = PivotReplica(
            pivot, output_patch=model.decoder.patch, downsampling=model.bridge.downsampling
        )
        running = train(TrainerInputs(
            task=TokenizerTask(model, replica=replica, evaluate=lambda *_: {}),
            recipe=resolved.config.recipe, data=data, runtime=runtime, folder=Path(folder), seed=0,
        ))  # fmt: skip
        steps = (event for event in running if isinstance(event, events.StepDone))
        for _ in range(2):
            next(steps)
        with torch.profiler.profile(activities=activities) as profiler:
            started = time.perf_counter()
            next(steps)
            runtime.synchronise()
            wall = time.perf_counter() - started
    time_of = "self_cpu_time_total" if toy else "self_device_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, time_of))
    if not toy:  # operators carry their kernels' time too: count kernels alone
        rows = [row for row in rows if row.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "batch_size": batch, "precision": runtime.precision, "wall_ms": wall * 1e3,
        "busy_ms": sum(getattr(row, time_of) for row in rows) / 1e3,
        "calls": sum(row.count for row in rows),
        "rows": [
            {"name": row.key, "ms": getattr(row, time_of) / 1e3, "calls": row.count}
            for row in rows[:12]
        ],
    }  # fmt: skip


Check = Callable[[Settings, float, Outcome], None]

#: In this order; with the seconds that each needs at least to be begun, and may take at most.
CHECKS: tuple[tuple[str, Check, float, float], ...] = (
    ("Machine", machine, 0, 60),
    ("Tests", tests, 20, 180),
    ("Speed of the paper's model", bench, 40, 150),
    ("Speed of a generator", generators, 40, 90),
    ("Profile of a step", profile, 30, 60),
    ("The default build", build, 40, 150),
    ("The claims, longer", claims, 60, 600),
)


def checked(settings: Settings, minutes: float) -> Iterator[Outcome]:
    """Run one check after another, while there is time."""
    ends = time.monotonic() + 60 * minutes
    for name, check, least, most in CHECKS:
        found = Outcome(name=name)
        started = time.monotonic()
        left = ends - started
        if left <= least:
            found.state = "skipped"
            found.lines.append(f"{left:.0f} s were left, it needs {least:.0f}")
        else:
            try:
                # A rehearsal may share its processors with others: only the whole is limited.
                check(settings, left if settings.toy else min(left, most), found)
            except Failed as failure:
                found.state = "failed"
                found.lines.append(str(failure))
        found.seconds = time.monotonic() - started
        print(f"{name}: {found.state} after {found.seconds:.0f} s", file=sys.stderr, flush=True)
        yield found


def page(outcomes: Sequence[Outcome], settings: Settings) -> str:
    """All outcomes as one Markdown page."""
    where = "a CPU, as a rehearsal" if settings.toy else "a GPU"
    lines = [f"# rpiae on {where}", "", f"Printed by `{shown_command()}`.", ""]
    for found in outcomes:
        lines += [
            f"## {found.name}",
            "",
            f"{found.state}, {found.seconds:.0f} s",
            "",
            *found.lines,
            "",
        ]
    return "\n".join(lines)


def shown_command() -> str:
    """The command as it was typed, without where Python is."""
    return " ".join(["python scripts/check_gpu.py", *sys.argv[1:]])


def main() -> int:
    """Run the checks; 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the page, the figures and all logs")
    parser.add_argument("--minutes", type=float, default=8.0, help="in all (default: 8)")
    parser.add_argument("--toy", action="store_true", help="on a CPU, in small")
    parser.add_argument(
        "--claims", type=Path, metavar="FOLDER", help="CIFAR-10 as train.parquet, test.parquet"
    )
    parser.add_argument(
        "--runs", type=int, default=6, metavar="N", help="runs of the claims at a time (6)"
    )
    parser.add_argument("--profile-step", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.profile_step:
        print(json.dumps(profile_step(arguments.toy)))
        return 0
    if arguments.out is None:
        parser.error("--out FOLDER is needed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        toy=arguments.toy, folder=arguments.out.resolve(), claims=arguments.claims, runs=arguments.runs,
    )  # fmt: skip
    outcomes = []
    for found in checked(settings, arguments.minutes):
        outcomes.append(found)
        # Written after each: whatever ends this process, what was found by then is there.
        (settings.folder / "gpu.md").write_text(page(outcomes, settings), encoding="utf-8")
        figures = {o.name: {"state": o.state, "seconds": o.seconds, **o.figures} for o in outcomes}
        (settings.folder / "gpu.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    print(page(outcomes, settings))
    return int(any(found.state == "failed" for found in outcomes))


if __name__ == "__main__":
    sys.exit(main())

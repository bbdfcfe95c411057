"""What a run leaves behind while it trains: JSON lines, TensorBoard events, W&B, and curves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs
from torch.utils.tensorboard import SummaryWriter

from rpiae.core import events
from rpiae.core.config import unparse
from rpiae.core.errors import MissingExtraError
from rpiae.core.recipe import RunConfig
from rpiae.evaluation.pictures import draw_curves

EVENTS_FILE = "events.jsonl"

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where scalars go."""

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of a stage's step, by name."""

    def close(self) -> None:
        """Write what is held back."""


def recorded(
    run: Iterator[events.Event], config: RunConfig, *, resume: bool
) -> Iterator[events.Event]:
    """The events of a run, each written to the run's folder before it is passed on.

    Args:
        run: the events.
        config: the run's config.
        resume: whether the run goes on; its lines up to where it goes on are kept.
    """
    with contextlib.ExitStack() as stack:
        recorder = Recorder(Path(config.out), resume=resume)
        for sink in _sinks(config):
            recorder.add(sink)
        stack.callback(recorder.close)
        for event in run:
            recorder.record(event)
            yield event
        recorder.draw_curves()


class Recorder:
    """Writes every event of a run.

    A sink that cannot be written (a full disk, say) is given up, once said; training is not.

    Args:
        folder: the run's folder.
        resume: whether the run goes on.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self._path = folder / EVENTS_FILE
        self._curves = folder / "curves.png"
        self._resume = resume
        self._lines: Callable[[str], object] | None = None
        self._sinks: list[Sink] = []
        self._closing = contextlib.ExitStack()

    def add(self, sink: Sink) -> None:
        """Have scalars written to a sink too."""
        self._sinks.append(sink)

    def record(self, event: events.Event) -> None:
        """Write one event."""
        try:
            if self._lines is None:
                self._open(event)
            elif isinstance(event, events.StageStarted) and self._resume:
                self._go_on(event)
            assert self._lines is not None
            row = attrs.asdict(event, value_serializer=_plain)
            self._lines(json.dumps({"event": type(event).__name__, **row}) + "\n")
        except OSError as error:
            self._give_up(EVENTS_FILE, error)
        scalars = _scalars(event)
        if scalars is None:
            return
        for sink in list(self._sinks):
            try:
                sink.write(*scalars)
            except OSError as error:
                self._sinks.remove(sink)
                self._give_up(type(sink).__name__, error)

    def close(self) -> None:
        """Close all files."""
        with contextlib.suppress(OSError):
            self._closing.close()
        for sink in self._sinks:
            with contextlib.suppress(OSError):
                sink.close()

    def draw_curves(self) -> None:
        """Draw ``curves.png`` from everything written so far, earlier sessions included."""
        losses: dict[str, list[tuple[int, float]]] = defaultdict(list)
        metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
        boundaries: dict[str, int] = {}
        offset = 0
        try:
            rows = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
            for row in rows:
                if row["event"] == "StageStarted":
                    boundaries.setdefault(row["stage"], offset)
                elif row["event"] == "StepDone":
                    for name, value in row["terms"].items():
                        losses[name].append((boundaries[row["stage"]] + row["step"], value))
                elif row["event"] == "Evaluated":
                    step = boundaries[row["stage"]] + row["step"]
                    metrics[row["stage"]].append((step, row["metrics"]["psnr"]))
                elif row["event"] == "StageEnded" and row["stage"] in boundaries:
                    offset = boundaries[row["stage"]] + row["steps"]
            draw_curves(self._curves, losses, metrics, boundaries)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("the curves cannot be drawn: %s", error)

    def _open(self, event: events.Event) -> None:
        """Open the file; of a run that goes on, keep the lines up to where it does."""
        mode = "a" if self._resume else "w"
        file = self._closing.enter_context(self._path.open(mode, encoding="utf-8", buffering=1))
        self._lines = file.write
        if isinstance(event, events.StageStarted) and self._resume:
            self._go_on(event)

    def _go_on(self, event: events.StageStarted) -> None:
        """Drop lines of steps that are taken once more, and a line that was cut off."""
        self._resume = False
        kept = []
        for line in self._path.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if row.get("stage") == event.stage and row.get("step", 0) > event.step:
                    break
                kept.append(line + "\n")
        self._closing.close()
        part = self._path.with_name(EVENTS_FILE + ".part")
        part.write_text("".join(kept), "utf-8")
        part.rename(self._path)
        file = self._closing.enter_context(self._path.open("a", encoding="utf-8", buffering=1))
        self._lines = file.write

    def _give_up(self, what: str, error: OSError) -> None:
        logger.warning("%s cannot be written any more (%s); training goes on", what, error.strerror)
        if what == EVENTS_FILE:
            self._lines = lambda _: None


class TensorBoardSink:
    """TensorBoard event files, under ``tensorboard/`` in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of a stage's step, as ``stage/name``."""
        for name, value in scalars.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Write what is held back."""
        self._writer.close()


class WandbSink:
    """A Weights & Biases run; ``WANDB_MODE=offline`` works.

    Its id is a function of the run's folder, so that a resumed run goes on with the same curves.

    Raises:
        MissingExtraError: if wandb is not installed.
    """

    def __init__(self, config: RunConfig) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingExtraError(
                'wandb_project needs wandb, which is not installed: pip install "rpiae[wandb]"'
            ) from None
        folder = Path(config.out)
        self._run = wandb.init(
            project=config.wandb_project, name=folder.name, dir=str(folder),
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16], resume="allow",
            config=unparse(config),
        )  # fmt: skip

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of a stage's step, as ``stage/name`` over ``stage/step``."""
        self._run.log({f"{stage}/{n}": v for n, v in scalars.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        """Upload what is held back."""
        self._run.finish()


def _sinks(config: RunConfig) -> Iterator[Sink]:
    yield TensorBoardSink(Path(config.out))
    if config.wandb_project:
        yield WandbSink(config)


def _scalars(event: events.Event) -> tuple[str, int, dict[str, float]] | None:
    """Stage, step and scalars of an event that has some."""
    if isinstance(event, events.Evaluated):
        named = {f"held-out/{name}": value for name, value in event.metrics.items()}
        return event.stage, event.step, named
    if not isinstance(event, events.StepDone):
        return None
    scalars = {"total": event.total, "learning-rate": event.learning_rate}
    scalars |= {f"terms/{k}": v for k, v in event.terms.items()}
    scalars |= {f"weights/{k}": v for k, v in event.weights.items()}
    scalars |= {f"gradient-norm/{k}": v for k, v in event.gradient_norms.items()}
    scalars |= {f"critic/{k}": v for k, v in event.critic.items()}
    scalars |= {"images-per-second": event.images_per_second}
    scalars |= {"data-seconds": event.data_seconds, "memory": event.memory}
    return event.stage, event.step, scalars


def _plain(_: Any, __: Any, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value

"""What a run leaves behind while it trains: JSON lines, TensorBoard events, W&B, and curves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import attrs

from rpiae.core.config.tree import unparse
from rpiae.core.errors import MissingExtraError
from rpiae.core.model.stages import AnyRun
from rpiae.core.runtime.files import open_regular, plain_name, whole
from rpiae.core.runtime.names import printable
from rpiae.core.training import events
from rpiae.evaluation.pictures import draw_curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS_FILE = "events.jsonl"

#: Held-out metrics that curves show, with what they are called there; a task has one of them.
CURVES: Mapping[str, str] = {"psnr": "held-out PSNR (dB)", "flow": "held-out loss of the flow"}

logger = logging.getLogger(__name__)


class Output(Protocol):
    """Where events go."""

    def write(self, event: events.Event) -> None:
        """Take what is wanted of an event."""

    def close(self) -> None:
        """Write what is held back."""


def recorded(
    run: Iterator[events.Event], config: AnyRun, *, resume: bool
) -> Iterator[events.Event]:
    """The events of a run, each written to the run's folder before it is passed on.

    Args:
        run: the events.
        config: the run's config.
        resume: whether the run goes on; its lines up to where it goes on are kept.
    """
    folder = Path(config.out)
    with contextlib.closing(Recorder(folder, resume=resume)) as recorder:
        recorder.add("TensorBoard", lambda: TensorBoardSink(folder))
        if config.wandb_project:
            recorder.add("Weights & Biases", lambda: WandbSink(config))
        for event in run:
            recorder.record(event)
            yield event
        recorder.draw_curves()


class Recorder:
    """Writes every event of a run.

    What cannot be written (a full disk, a service that fails) is given up, once said; training is not.

    Args:
        folder: the run's folder.
        resume: whether the run goes on.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self._curves = folder / "curves.png"
        self._log = EventLog(folder / EVENTS_FILE, resume=resume)
        self._outputs: list[tuple[str, Output]] = [(EVENTS_FILE, self._log)]

    def add(self, name: str, make: Callable[[], Output]) -> None:
        """Have events written somewhere else too.

        Args:
            name: what messages call it.
            make: gives it; it may fail.
        """
        with self._giving_up(name):
            self._outputs.append((name, make()))

    def record(self, event: events.Event) -> None:
        """Write one event."""
        for name, output in list(self._outputs):
            with self._giving_up(name):
                output.write(event)

    def close(self) -> None:
        """Close all files."""
        for name, output in list(self._outputs):
            with self._giving_up(name):
                output.close()

    def draw_curves(self) -> None:
        """Draw ``curves.png`` from everything written so far, earlier sessions included."""
        losses: dict[str, list[tuple[int, float]]] = defaultdict(list)
        metrics: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        boundaries: dict[str, int] = {}
        offset = 0
        try:
            for row in self._log.rows():
                if row["event"] == "StageStarted":
                    boundaries.setdefault(row["stage"], offset)
                elif row["event"] == "StepDone":
                    for name, value in row["terms"].items():
                        losses[name].append((boundaries[row["stage"]] + row["step"], value))
                elif row["event"] == "Evaluated":
                    step = boundaries[row["stage"]] + row["step"]
                    for name in CURVES:
                        if name in row["metrics"]:
                            metrics[name, row["stage"]].append((step, row["metrics"][name]))
                elif row["event"] == "StageEnded" and row["stage"] in boundaries:
                    offset = boundaries[row["stage"]] + row["steps"]
            draw_curves(
                self._curves, losses, {stage: m for (_, stage), m in metrics.items()}, boundaries,
                what=next((CURVES[name] for name, _ in metrics), ""),
            )  # fmt: skip
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            logger.warning("the curves cannot be drawn: %s", error)

    @contextlib.contextmanager
    def _giving_up(self, name: str) -> Iterator[None]:
        """Where an output may fail: it is then told of, and left alone."""
        try:
            yield
        except (Exception, SystemExit) as error:  # a service's client raises what it likes
            self._outputs = [each for each in self._outputs if each[0] != name]
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            logger.warning("%s is given up (%s); training goes on", name, printable(text))


class EventLog:
    """``events.jsonl``: the events of a run as if it had never been interrupted.

    Args:
        path: the file.
        resume: whether the run goes on; lines of steps that are taken once more are dropped.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self._resume = resume
        self._file: IO[str] | None = None
        self._told: set[tuple[str, str]] = set()
        self._done: set[str] = set()

    def write(self, event: events.Event) -> None:
        """Write one event; what a run that goes on tells again is there already."""
        if isinstance(event, events.StageStarted) and self._resume:
            self._go_on(event.stage, event.step)
        elif isinstance(event, events.TakenBack):
            self._go_on(event.stage, event.to)
        elif isinstance(event, (events.StageEnded, events.StageSkipped)):
            self._done.add(event.stage)
        once = _told_once(type(event).__name__, getattr(event, "stage", ""))
        file = self._opened()
        if once in self._told:
            return
        if once is not None:
            self._told.add(once)
        row = attrs.asdict(event, value_serializer=_plain)
        line = {"event": type(event).__name__, **row}
        file.write(json.dumps(line, default=str) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every event that can be read."""
        with open_regular(self._path) as file:
            for line in file:
                row = _row(line)
                if row is not None:
                    yield row

    def _opened(self) -> IO[str]:
        """The file; of a run that goes on, without lines that cannot be read."""
        if self._file is None:
            if self._resume and self._path.exists():
                self._keep(lambda _: True)
            elif self._path.exists():
                open_regular(self._path).close()  # lest the next waits for a FIFO's reader
            mode = "a" if self._resume else "w"
            self._file = self._path.open(mode, encoding="utf-8", buffering=1)
        return self._file

    def _go_on(self, beginning: str, step: int) -> None:
        """Drop the lines of all that is done once more, from a step of a stage on."""
        self._opened().close()
        self._resume = False

        def comes_before(row: Mapping[str, Any]) -> bool:
            stage = row.get("stage", beginning)
            if stage != beginning:
                return stage in self._done
            return row["event"] != "StageEnded" and not _later(row.get("step"), step)

        self._keep(comes_before)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def _keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Keep the lines up to the first that is not wanted; those that cannot be read are told of."""
        lost = 0
        self._told.clear()
        with (
            open_regular(self._path) as file,
            whole(self._path) as unfinished,
            unfinished.open("w", encoding="utf-8") as kept,
        ):
            for line in file:
                row = _row(line)
                if row is None:
                    lost += bool(line.strip())
                    continue
                if not wanted(row):
                    break
                once = _told_once(row["event"], row.get("stage"))
                if once in self._told:
                    continue
                if once is not None:
                    self._told.add(once)
                kept.write(json.dumps(row) + "\n")
        if lost:
            logger.warning("%s: %d damaged lines were left out", self._path, lost)


def _row(line: bytes) -> dict[str, Any] | None:
    """An event's line; None where it cannot be read."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("event"), str) else None


def _told_once(event: str, stage: Any) -> tuple[str, str] | None:
    """What marks an event that a stage has once."""
    if event in ("StageStarted", "StageSkipped", "StageEnded") and isinstance(stage, str):
        return event, stage
    return None


def _later(step: Any, than: int) -> bool:
    return isinstance(step, (int, float)) and step > than


class TensorBoardSink:
    """TensorBoard event files, in a folder per stage under ``tensorboard/`` in the run's folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make = SummaryWriter
        self._folder = folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def write(self, event: events.Event) -> None:
        """Scalars of a stage's step, as ``stage/name``; of steps taken once more the last ones count."""
        begins = {events.StageStarted: "step", events.TakenBack: "to"}.get(type(event))
        if begins is not None:
            step: int = getattr(event, begins)
            stage: str = event.stage  # type: ignore[attr-defined]  # both have one
            self.close()
            self._writer = self._make(str(self._folder / plain_name(stage)), purge_step=step + 1)
        scalars = _scalars(event)
        if scalars is None or self._writer is None:
            return
        stage, step, values = scalars
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Write what is held back."""
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """A Weights & Biases run; ``WANDB_MODE=offline`` works.

    Its id is a function of the run's folder, so that a resumed run goes on with the same curves.

    Raises:
        MissingExtraError: if wandb is not installed.
    """

    def __init__(self, config: AnyRun) -> None:
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

    def write(self, event: events.Event) -> None:
        """Scalars of a stage's step, as ``stage/name`` over ``stage/step``."""
        scalars = _scalars(event)
        if scalars is not None:
            stage, step, values = scalars
            self._run.log({f"{stage}/{n}": v for n, v in values.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        """Upload what is held back."""
        self._run.finish()


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
    scalars |= {f"{name}/{k}": v for name, row in event.others.items() for k, v in row.items()}
    scalars |= {"images-per-second": event.images_per_second}
    scalars |= {"data-seconds": event.data_seconds, "memory": event.memory}
    return event.stage, event.step, scalars


def _plain(_: Any, __: Any, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value

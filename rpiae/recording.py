"""What a run leaves behind while it trains: JSON lines, TensorBoard events and curves."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

import attrs
from torch.utils.tensorboard import SummaryWriter

from rpiae.core import events
from rpiae.evaluation.pictures import draw_curves

EVENTS_FILE = "events.jsonl"


class Recorder(contextlib.AbstractContextManager["Recorder"]):
    """Writes every event of a run.

    Args:
        folder: the run's folder.
        resume: whether the run goes on, so that its lines are kept.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self._folder = folder
        self._mode = "a" if resume else "w"
        self._offset = 0
        self._file: IO[str]
        self._board: SummaryWriter

    def __enter__(self) -> Recorder:
        self._file = (self._folder / EVENTS_FILE).open(self._mode, encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(self._folder / "tensorboard"))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def record(self, event: events.Event) -> None:
        """Write one event."""
        row = attrs.asdict(event, value_serializer=_plain)
        self._file.write(json.dumps({"event": type(event).__name__, **row}) + "\n")
        if isinstance(event, events.StepDone):
            self._board_step(event)
        elif isinstance(event, events.Evaluated):
            for name, value in event.metrics.items():
                self._board.add_scalar(f"{event.stage}/held-out/{name}", value, event.step)

    def draw_curves(self) -> None:
        """Draw ``curves.png`` from everything written so far, earlier sessions included."""
        losses: dict[str, list[tuple[int, float]]] = defaultdict(list)
        metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
        boundaries: dict[str, int] = {}
        offset = 0
        for line in (self._folder / EVENTS_FILE).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["event"] == "StageStarted":
                boundaries.setdefault(row["stage"], offset)
            elif row["event"] == "StepDone":
                for name, value in row["terms"].items():
                    losses[name].append((boundaries[row["stage"]] + row["step"], value))
            elif row["event"] == "Evaluated":
                step = boundaries[row["stage"]] + row["step"]
                metrics[row["stage"]].append((step, row["metrics"]["psnr"]))
            elif row["event"] == "StageEnded":
                offset = boundaries[row["stage"]] + row["steps"]
        draw_curves(self._folder / "curves.png", losses, metrics, boundaries)

    def _board_step(self, event: events.StepDone) -> None:
        scalars = {"total": event.total, "learning-rate": event.learning_rate}
        scalars |= {f"terms/{k}": v for k, v in event.terms.items()}
        scalars |= {f"weights/{k}": v for k, v in event.weights.items()}
        scalars |= {f"gradient-norm/{k}": v for k, v in event.gradient_norms.items()}
        scalars |= {"images-per-second": event.images_per_second}
        scalars |= {"data-seconds": event.data_seconds}
        for name, value in scalars.items():
            self._board.add_scalar(f"{event.stage}/{name}", value, event.step)


def _plain(_: Any, __: Any, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value

"""``rpiae bench``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

import attrs
from rich.table import Table

from rpiae.cli.options import positive, resolved_run, run_options
from rpiae.cli.screen import count, stderr, stdout

if TYPE_CHECKING:
    from rpiae.runs.speed import Speed


def options(parser: argparse.ArgumentParser) -> None:
    """A run, and how it is measured."""
    run_options(parser)
    parser.add_argument("--repeats", type=positive, default=5, metavar="N")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Measure a combination in both precisions, and print each figure as it comes."""
    from rpiae import runs
    from rpiae.core.runtime.devices import choose_device
    from rpiae.core.runtime.memory import check_memory
    from rpiae.core.runtime.processes import MatrixSpeed, Precision
    from rpiae.runs.speed import measure

    resolved = resolved_run(arguments)
    plan = runs.plan(resolved)
    check_memory(plan.memory, choose_device(resolved.config.device))
    given: Precision | None = arguments.precision
    precisions: tuple[Precision, ...] = (given,) if given else ("fp32", "bf16")
    rows: list[Speed] = []
    peak = None
    for measured in measure(resolved, precisions=precisions, repeats=arguments.repeats):
        if isinstance(measured, MatrixSpeed):
            peak = measured
            stderr.print(
                f"matrix products here: {peak.fp32:.2f} TFLOP/s in fp32, {peak.bf16:.2f} in bf16 "
                f"({peak.size}³)"
            )
            continue
        rows.append(measured)
        stderr.print(
            f"{measured.operation} {measured.precision}: {measured.images_per_second:.2f} "
            f"{_counted(measured.frames)}s/s"
        )
    assert peak is not None
    parameters = {part.role: part.parameters for part in plan.parts}
    if arguments.json:
        report = {
            "parameters": parameters, "matrix_products": attrs.asdict(peak),
            "image_size": plan.image_size, "rows": [attrs.asdict(row) for row in rows],
        }  # fmt: skip
        print(json.dumps(report, indent=2))
        return 0
    frames = rows[0].frames
    stdout.print(
        " · ".join(f"{role} {count(number)}" for role, number in parameters.items())
        + f" parameters · {_kind(frames)} {plan.image_size}×{plan.image_size}"
    )
    stdout.print(_table(rows, frames))
    return 0


def _table(rows: list[Speed], frames: int | None) -> Table:
    """The measured operations; ``frames`` of the clips that the first ones were measured on."""
    table = Table(box=None, pad_edge=False)
    each = _counted(frames)
    for heading in (
        "operation",
        "precision",
        f"{each}s/s",
        f"GMAC/{each}",
        "of peak",
        "memory GiB",
    ):
        table.add_column(heading, justify="left" if heading in ("operation",) else "right")
    for row in rows:
        memory = f"{row.memory / 2**30:.2f}" if row.memory else "?"
        table.add_row(
            row.operation + (" (images)" if frames and not row.frames else ""),
            row.precision, f"{row.images_per_second:.2f}",
            f"{row.multiply_adds / 1e9:.1f}", f"{row.peak_share:.0%}", memory,
        )  # fmt: skip
    return table


def _counted(frames: int | None) -> str:
    """What speed is counted in."""
    return "image" if frames is None else "frame"


def _kind(frames: int | None) -> str:
    """What was measured on."""
    return "images" if frames is None else f"clips of {frames} frames"

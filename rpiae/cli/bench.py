"""``rpiae bench``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen
from rich.table import Table

from rpiae.cli.options import left_out, nonempty, positive, resolved_run, run_options, run_tree
from rpiae.cli.screen import count, stderr, stdout
from rpiae.core.errors import UsageError

if TYPE_CHECKING:
    from rpiae.core.runtime.processes import MatrixSpeed, Precision
    from rpiae.runs.timing import Speed

#: Options that are fields of a generator's run, here.
GENERATOR_FIELDS = ("generator", "recipe", "seed", "device", "precision", "compile")


@frozen(kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        parameters: by role.
        image_size: side of its images; 0 where it is a generator.
        latent: (C, h, w) of a generator's latents.
        rows: measured in the precisions that are given, so many times.
    """

    parameters: Mapping[str, int]
    rows: Callable[[tuple[Precision, ...], int], Iterator[MatrixSpeed | Speed]]
    image_size: int = 0
    latent: tuple[int, ...] = ()

    def described(self) -> dict[str, Any]:
        """What its rows are about, for ``--json``."""
        size = {"latent": list(self.latent)} if self.latent else {"image_size": self.image_size}
        return {"parameters": dict(self.parameters), **size}

    def in_words(self, frames: int | None) -> str:
        """The same in a line; ``frames`` of the clips that the first rows were measured on."""
        roles = " · ".join(f"{role} {count(number)}" for role, number in self.parameters.items())
        if self.latent:
            return f"{roles} parameters · latents {'×'.join(map(str, self.latent))}"
        return f"{roles} parameters · {_kind(frames)} {self.image_size}×{self.image_size}"


def options(parser: argparse.ArgumentParser) -> None:
    """A run, and how it is measured."""
    run_options(parser)
    parser.add_argument(
        "--generator", metavar="NAME", type=nonempty,
        help="measure a generator in place of a tokenizer, such as dit-s, on noise of 64×16×16 with "
        "1,000 classes; --set generator.latent_channels=…, rows, columns, num_classes",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=5, metavar="N")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Measure a combination in both precisions, and print each figure as it comes."""
    from rpiae.core.runtime.processes import MatrixSpeed

    subject = _generator(arguments) if _is_generator(arguments) else _tokenizer(arguments)
    given: Precision | None = arguments.precision
    precisions: tuple[Precision, ...] = (given,) if given else ("fp32", "bf16")
    rows: list[Speed] = []
    peak = None
    for measured in subject.rows(precisions, arguments.repeats):
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
    if arguments.json:
        report = subject.described() | {
            "matrix_products": attrs.asdict(peak), "rows": [attrs.asdict(row) for row in rows],
        }  # fmt: skip
        print(json.dumps(report, indent=2))
        return 0
    stdout.print(subject.in_words(rows[0].frames))
    stdout.print(_table(rows, rows[0].frames))
    return 0


def _is_generator(arguments: argparse.Namespace) -> bool:
    """Whether the options, or the file, are of a generator's run.

    Raises:
        UsageError: if they are of a tokenizer's too.
    """
    named = [name for name in ("encoder", "bridge", "decoder", "data") if getattr(arguments, name)]
    of_file = bool(arguments.config) and "generator" in run_tree(arguments, fields=())
    if not arguments.generator and not of_file:
        return False
    if named:
        raise UsageError(
            f"--{named[0]} is of a tokenizer's run, and a generator is measured on noise: leave out "
            f"one of --generator and --{named[0]}"
        )
    return True


def _tokenizer(arguments: argparse.Namespace) -> Subject:
    from rpiae import runs
    from rpiae.core.runtime.devices import choose_device
    from rpiae.core.runtime.memory import check_memory
    from rpiae.runs.speed import measure

    resolved = resolved_run(arguments)
    plan = runs.plan(resolved)
    check_memory(plan.memory, choose_device(resolved.config.device))
    return Subject(
        parameters={part.role: part.parameters for part in plan.parts},
        image_size=plan.image_size,
        rows=lambda precisions, repeats: measure(resolved, precisions=precisions, repeats=repeats),
    )


def _generator(arguments: argparse.Namespace) -> Subject:
    from rpiae.core.runtime.devices import choose_device
    from rpiae.core.runtime.memory import check_memory
    from rpiae.runs.generating.speed import measure_generator, resolve_measured

    measured = resolve_measured(
        run_tree(arguments, fields=GENERATOR_FIELDS), overrides=tuple(arguments.overrides),
        without=left_out(arguments), source=str(arguments.config or "the command line"),
    )  # fmt: skip
    check_memory(measured.memory, choose_device(measured.config.device))
    parameters = sum(p.numel() for p in measured.build("meta").parameters())
    return Subject(
        parameters={"generator": parameters},
        latent=measured.facts.shape,
        rows=lambda precisions, repeats: measure_generator(
            measured, precisions=precisions, repeats=repeats
        ),
    )


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

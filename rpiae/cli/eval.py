"""``rpiae eval``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from rpiae.cli.launch import launch, launched, speaks
from rpiae.cli.progress import Bar
from rpiae.cli.screen import duration, stderr, stdout
from rpiae.core.errors import UsageError

if TYPE_CHECKING:
    from rpiae.evaluation.configs import EvaluationConfig
    from rpiae.evaluation.evaluating import Evaluation
    from rpiae.evaluation.images import Progress


def execute(arguments: argparse.Namespace) -> int:
    """Measure tokenizers and print their numbers."""
    from rpiae.core.runtime import Runtime, choose_device
    from rpiae.core.tokenizer import tokenizer_folder
    from rpiae.evaluation.evaluating import evaluate_saved

    config = _config(arguments)
    folders = [Path(folder) for folder in arguments.runs]
    for folder in folders:
        tokenizer_folder(folder)
    if arguments.write_reference and len(folders) > 1:
        raise UsageError("--write-reference goes with one run: a reference is of images alone")
    if arguments.processes > 1 and not launched():
        choose_device(arguments.device)
        return launch(arguments.processes, go_on=shlex.join(["rpiae", *sys.argv[1:]]))
    runtime = Runtime(device=arguments.device, precision=config.precision)
    found: dict[str, Evaluation] = {}
    with Bar("eval") as bar:
        for folder in folders:
            found[str(folder)] = evaluate_saved(
                folder, config, runtime=runtime,
                progress=lambda event: show(bar, event) if speaks() else None,
                reference_out=Path(arguments.write_reference) if arguments.write_reference else None,
            )  # fmt: skip
    runtime.close()
    if not speaks():
        return 0
    _check_comparable(found)
    if arguments.json:
        print(json.dumps({name: each.as_tree() for name, each in found.items()}, indent=2))
    else:
        _print(found)
    return 0


def _config(arguments: argparse.Namespace) -> EvaluationConfig:
    from rpiae.evaluation.configs import EvaluationConfig

    names = [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    if not names:
        raise UsageError("--metrics names none: rpiae list metrics has them")
    if not arguments.data and (arguments.image_size or arguments.images):
        raise UsageError("--images and --image-size are about --data, which is not given")
    metrics: list[Any] = list(names)
    if arguments.reference:
        distances = [i for i, n in enumerate(names) if n.partition(":")[0] in ("rfd", "rfid")]
        if len(distances) != 1:
            raise UsageError(
                "--reference is for one Fréchet distance of reconstructions, and the metrics name "
                f"{len(distances)}: name one of rfd:SPACE and rfid"
            )
        name, _, argument = names[distances[0]].partition(":")
        table = {"name": name, "reference": arguments.reference}
        if argument:
            table |= {"weights" if name == "rfid" else "space": argument}
        metrics[distances[0]] = table
    return EvaluationConfig(
        data=arguments.data or "", training=arguments.train or "", metrics=tuple(metrics),
        num_images=arguments.images, num_training=arguments.train_images,
        image_size=arguments.image_size, precision=arguments.precision,
        batch_size=arguments.batch_size,
    )  # fmt: skip


def show(bar: Bar, event: Progress) -> None:
    """How far a walk over images is."""
    rate = event.done / event.seconds if event.seconds else 0.0
    left = duration((event.total - event.done) / rate) if rate else "?"
    bar.show(event.done, event.total, f"{event.what}: {rate:.3g} images/s · {left} left")


def _check_comparable(found: Mapping[str, Evaluation]) -> None:
    """Numbers that stand side by side were measured alike."""
    from rpiae.evaluation.protocol import check_comparable

    names = dict.fromkeys(name for each in found.values() for name in each.metrics)
    for name in names:
        protocols = {
            folder: each.protocol["metrics"][name]
            for folder, each in found.items()
            if "extractor" in each.protocol["metrics"].get(name, {})
        }
        if len(protocols) > 1:
            check_comparable(name, protocols)


def _print(found: Mapping[str, Evaluation]) -> None:
    from rpiae.evaluation.protocol import EVALUATION_FILE
    from rpiae.evaluation.subjects import results_folder

    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for folder in found:
        table.add_column(folder, justify="right", overflow="fold")
    for name in dict.fromkeys(name for each in found.values() for name in each.metrics):
        values = [each.metrics.get(name) for each in found.values()]
        table.add_row(name, *("–" if v is None else f"{v:.5g}" for v in values))
    stdout.print(table)
    protocol = next(iter(found.values())).protocol
    lines = [
        f"{protocol['count']} images of {protocol['location']} ({protocol['crop']}), "
        f"sha256 {protocol['images_sha256'][:16]}, tokenizer in {protocol['precision']}"
    ]
    if "training" in protocol:
        learned = protocol["training"]
        lines.append(
            f"learned from {learned['count']} images of {learned['location']} ({learned['crop']}), "
            f"sha256 {learned['images_sha256'][:16]}"
        )
    for name, facts in protocol["metrics"].items():
        if "extractor" in facts:
            digest = str(facts["extractor"].get("weights_sha256", ""))[:16]
            lines.append(f"{name}: in the features of {facts['extractor']['extractor']}, {digest}")
    stdout.print("\n" + "\n".join(lines), soft_wrap=True)
    for folder, each in found.items():
        for text in each.warnings:
            stderr.print(f"warning: {folder}: {text}", soft_wrap=True)
        if each.skipped:
            more = f" and {len(each.skipped) - 1} more" if len(each.skipped) > 1 else ""
            stderr.print(f"{folder}: skipped {each.skipped[0]}{more}", soft_wrap=True)
    where = ", ".join(str(results_folder(Path(folder)) / EVALUATION_FILE) for folder in found)
    stdout.print(f"all of it is in {where}", soft_wrap=True)

"""What ``rpiae eval`` and its like have in common: what is asked for, its progress, and how results are told."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from rich.table import Table

from rpiae.cli.launch import launch, launched, speaks
from rpiae.cli.progress import Bar
from rpiae.cli.screen import duration, stderr, stdout
from rpiae.core.errors import RpiaeError, UsageError
from rpiae.core.runtime.names import printable

if TYPE_CHECKING:
    from rpiae.core.config.tree import Tree
    from rpiae.core.runtime.processes import Runtime
    from rpiae.evaluation.configs import EvaluationConfig
    from rpiae.evaluation.evaluating import Evaluation
    from rpiae.evaluation.walk import Progress

#: Seconds that an evaluation takes, above which it is said how it would take fewer.
LONG = 60

#: Skipped images that are named; all are in ``evaluation.json``.
MENTIONED = 10


def measuring_config(arguments: argparse.Namespace) -> EvaluationConfig:
    """What is measured on and with what, as far as the options say it.

    Raises:
        UsageError: if they contradict each other.
    """
    from rpiae.evaluation.configs import EvaluationConfig

    names = [name.strip() for name in (arguments.metrics or "").split(",") if name.strip()]
    if not names and arguments.metrics is not None:
        raise UsageError("--metrics names none: rpiae list metrics has them")
    about = ("images", "image_size", "resize", "crop")
    given = [name for name in about if getattr(arguments, name) is not None]
    if not arguments.data and given:
        names_given = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        verb = "are" if len(given) > 1 else "is"
        raise UsageError(f"{names_given} {verb} about --data, which is not given")
    data = named_datasets(arguments.overrides, {"data": arguments.data, "train": arguments.train})
    return EvaluationConfig(
        data=data["data"], training=data["train"], metrics=tuple(names),
        num_images=arguments.images, num_training=arguments.train_images,
        crop=arguments.crop or "adm", resize=arguments.resize, image_size=arguments.image_size,
        round=arguments.round, precision=arguments.precision or "fp32",
        batch_size=arguments.batch_size,
    )  # fmt: skip


def with_reference(
    names: Sequence[Any], reference: str, distances: Sequence[str], of_what: str
) -> tuple[Any, ...]:
    """Metrics, of which the one Fréchet distance has a reference.

    Args:
        names: of the metrics.
        reference: the file.
        distances: names of Fréchet distances.
        of_what: whose distances these are, for the message.

    Raises:
        UsageError: if there is not one such distance.
    """
    found = [name for name in names if name.partition(":")[0] in distances]
    if len(found) != 1:
        raise UsageError(
            f"--reference is for one Fréchet distance of {of_what}, and the metrics name {len(found)}: "
            f"name one of {', '.join(distances)}"
        )
    name, _, argument = found[0].partition(":")
    table = {"name": name, "reference": reference}
    if argument:
        table |= {"weights" if name == "rfid" else "space": argument}
    return tuple(table if each == found[0] else each for each in names)


def named_datasets(
    overrides: Sequence[str], given: Mapping[str, str | None]
) -> dict[str, str | Tree]:
    """Datasets with those of their fields that ``--set`` names.

    Args:
        overrides: texts such as ``data.column=img``.
        given: the first word of the paths → the dataset; None where there is none.

    Raises:
        UsageError: if a text is about none of them.
    """
    from rpiae.core.config.tree import parse_override
    from rpiae.data.listed import with_overrides

    texts: dict[str, list[str]] = {address: [] for address in given}
    for text in overrides:
        address = str(parse_override(text)[0][0])
        if address not in given:
            choices = " or ".join(f"{name}.FIELD=VALUE" for name in given)
            raise UsageError(f"--set {text}: fields of the datasets are set here, by {choices}")
        if given[address] is None:
            raise UsageError(f"--set {text} is about --{address}, which is not given")
        texts[address].append(text)
    return {
        address: with_overrides(data, texts[address], address=address)
        if data is not None and texts[address]
        else data or ""
        for address, data in given.items()
    }


@frozen(kw_only=True)
class Job:
    """What is measured, and how it is told.

    Attributes:
        configs: of the evaluation of each tokenizer, generator or set of samples.
        evaluate: measures one of them by its config.
        results: where its results go.
        told: what numbers depend on, in words, of a protocol.
        keeps: whether results are stored.
        precise: whether the precision that is asked for makes a difference.
    """

    configs: Mapping[Path, EvaluationConfig]
    evaluate: Callable[..., Evaluation]
    results: Callable[[Path], Path]
    told: Callable[[Mapping[str, Any]], list[str]]
    keeps: bool = True
    precise: bool = True


def measured(arguments: argparse.Namespace, job: Job) -> int:
    """Have a job done, in as many processes as are asked for, and tell its results."""
    from rpiae.core.model.fetching import needed
    from rpiae.core.model.places import is_borrowed, lasting_name
    from rpiae.core.runtime.devices import choose_device
    from rpiae.core.runtime.processes import Runtime
    from rpiae.evaluation.panel import metric_configs

    reference = Path(arguments.write_reference) if arguments.write_reference else None
    if speaks() and (
        missing := [
            each.what
            for each in needed(metric_configs(_all_metrics(job.configs)).values())
            if not each.path
        ]
    ):
        _say(f"weights that are not on this machine are fetched first: {', '.join(missing)}")
    if arguments.processes > 1 and not launched():
        choose_device(arguments.device)
        return launch(arguments.processes, go_on=shlex.join(["rpiae", *sys.argv[1:]]))
    precision = next(iter(job.configs.values())).precision
    runtime = Runtime(device=arguments.device, precision=precision)
    found: dict[str, Evaluation] = {}
    told = arguments.precision is not None or not job.precise
    try:
        with Bar("eval") as bar:

            def progress(event: Progress) -> None:
                nonlocal told
                if speaks():
                    show(bar, event)
                    told = told or _advise(bar, event, runtime)

            for folder, config in job.configs.items():
                name = lasting_name(folder) if is_borrowed(folder) else str(folder)
                found[name] = job.evaluate(
                    folder, config, runtime=runtime, progress=progress, reference_out=reference
                )
    except RpiaeError:
        if speaks() and found:
            _report(found, job, as_json=arguments.json)
        raise
    runtime.close()
    if not speaks():
        return 0
    _report(found, job, as_json=arguments.json)
    if differences := incomparable(found):
        raise UsageError(" · ".join(differences.values()))
    return 1 if any(each.unwritten for each in found.values()) else 0


def _all_metrics(configs: Mapping[Path, EvaluationConfig]) -> tuple[Any, ...]:
    """The metrics of several evaluations, each once."""
    found: list[Any] = []
    for config in configs.values():
        found += [each for each in config.metrics if each not in found]
    return tuple(found)


def show(bar: Bar, event: Progress) -> None:
    """How far a walk over images is."""
    rate = event.done / event.seconds if event.seconds else 0.0
    left = duration((event.total - event.done) / rate) if rate else "?"
    bar.show(event.done, event.total, f"{event.what}: {rate:.3g} {event.unit}/s · {left} left")


def _advise(bar: Bar, event: Progress, runtime: Runtime) -> bool:
    """Say once how an evaluation that takes long would be faster; whether all is said."""
    from rpiae.core.runtime.processes import choose_precision

    if not event.seconds or event.done == event.total:
        return False
    if event.seconds * (event.total - event.done) / event.done > LONG:
        precision, reason = choose_precision("auto", runtime.device)
        if precision != runtime.precision:
            bar.say(
                f"note: computed in {runtime.precision}, so that numbers compare with those of other "
                f"machines; --precision auto would take {precision} ({reason})"
            )
    return True


def incomparable(found: Mapping[str, Evaluation]) -> dict[str, str]:
    """Numbers that were measured differently, with what differs."""
    from rpiae.evaluation.protocol import check_comparable, number_protocol

    reasons = {}
    for name in dict.fromkeys(name for each in found.values() for name in each.metrics):
        protocols = {
            folder: number_protocol(each.protocol, name)
            for folder, each in found.items()
            if name in each.metrics
        }
        try:
            check_comparable(name, protocols)
        except UsageError as error:
            reasons[name] = str(error)
    return reasons


def _report(found: Mapping[str, Evaluation], job: Job, *, as_json: bool) -> None:
    """Numbers side by side, or one after the other where they do not compare.

    Args:
        found: what was measured.
        job: by which it was.
        as_json: whether it is printed as JSON.
    """
    from rpiae.core.model.places import is_borrowed
    from rpiae.evaluation.protocol import EVALUATION_FILE
    from rpiae.evaluation.records import printable_tree

    if as_json:
        tree = {name: each.as_tree() for name, each in found.items()}
        print(json.dumps(printable_tree(tree), indent=2))
    elif incomparable(found):
        for folder, each in found.items():
            _print_table({folder: each}, job)
    else:
        _print_table(found, job)
    for folder, each in found.items():
        for kind, texts in (
            ("warning", each.warnings), ("note", each.notices), ("not stored", each.unwritten),
        ):  # fmt: skip
            for text in texts:
                _say(f"{kind}: {folder}: {text}")
    for lines in dict.fromkeys(map(_skipped, found.values())):
        for line in lines:
            _say(line)
    named = zip(job.configs, found.values(), strict=False)  # fewer where one of them failed
    stored = [path for path, each in named if not (each.unwritten or is_borrowed(path))]
    if stored and job.keeps and not as_json:
        where = ", ".join(str(job.results(folder) / EVALUATION_FILE) for folder in stored)
        stdout.print(printable(f"all of it is in {where}"), soft_wrap=True)


def _say(text: str) -> None:
    stderr.print(printable(text), soft_wrap=True)


def _print_table(found: Mapping[str, Evaluation], job: Job) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for folder in found:
        table.add_column(printable(folder), justify="right", overflow="fold")
    for name in dict.fromkeys(name for each in found.values() for name in each.metrics):
        values = [each.metrics.get(name) for each in found.values()]
        table.add_row(name, *("–" if v is None else f"{v:.5g}" for v in values))
    stdout.print(table)
    lines = job.told(next(iter(found.values())).protocol)
    stdout.print("\n" + "\n".join(map(printable, lines)), soft_wrap=True)


def spaces_of(protocol: Mapping[str, Any]) -> list[str]:
    """In which features numbers are, in words."""
    names: dict[str, list[str]] = {}
    for name, facts in protocol["metrics"].items():
        if "extractor" in facts:
            digest = str(facts["extractor"].get("weights_sha256", ""))[:16]
            names.setdefault(f"{facts['extractor']['extractor']}, {digest}", []).append(name)
    return [f"{', '.join(of)}: in the features of {space}" for space, of in names.items()]


def images_of(walked: Mapping[str, Any]) -> str:
    """What was walked over, in words."""
    skipped = f", {walked['skipped']} skipped" if walked["skipped"] else ""
    what = "clip" if "frames" in walked else "image"
    images = f"1 {what}" if walked["count"] == 1 else f"{walked['count']} {what}s"
    frames = f" of {walked['frames']} frames each" if "frames" in walked else ""
    return (
        f"{images}{frames} of {walked['location']} ({walked['crop']}){skipped}, "
        f"sha256 {walked['images_sha256'][:16]}"
    )


def _skipped(each: Evaluation) -> tuple[str, ...]:
    """The images that could not be used, in lines; many are counted."""
    if not each.skipped:
        return ()
    what = "clip" if "frames" in each.protocol else "image"
    walked = (each.protocol, *(each.protocol.get(name, {}) for name in ("training", "real")))
    count = sum(of.get("skipped", 0) for of in walked)
    images = f"1 {what}" if count == 1 else f"{count} {what}s"
    rest = len(each.skipped) - MENTIONED
    more = (f"  and {rest} more, which evaluation.json names",) if rest > 0 else ()
    return (f"skipped {images}:", *(f"  {text}" for text in each.skipped[:MENTIONED]), *more)

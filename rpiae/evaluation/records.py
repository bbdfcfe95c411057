"""What was measured about a tokenizer, in its ``evaluation.json`` (torch-free).

The file holds every evaluation, oldest first, and above them the newest one, joined by the numbers
that only earlier ones of the same weights have.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rpiae.core.errors import RunError
from rpiae.core.runtime.files import open_regular, write_text
from rpiae.core.runtime.names import printable
from rpiae.evaluation.protocol import number_protocol, protocol_differences

#: Of ``evaluation.json``; raised where equal configs mean other numbers than before.
FORMAT = 2

#: Fields of an evaluation that say what was measured, as far as they are there.
WEIGHTS = ("tokenizer_sha256", "generator_sha256", "samples_sha256")

Record = Mapping[str, Any]


def evaluations(tree: Any) -> list[Record]:
    """The evaluations in a file, oldest first.

    Args:
        tree: what the file holds; one of an earlier format is a single evaluation.

    Raises:
        ValueError: if it holds something else.
    """
    found = tree.get("evaluations", [tree]) if isinstance(tree, dict) else None
    if not isinstance(found, list) or not all(_is_record(each) for each in found):
        raise ValueError("it holds no evaluations")
    return found


def read_evaluations(path: Path) -> list[Record]:
    """The evaluations in a file, oldest first; none where there is no file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it holds something else.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        return []
    try:
        tree = json.loads(content)
        json.dumps(tree, allow_nan=False)  # what is not finite could not be written again
        return evaluations(tree)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def measured_as(found: Sequence[Record], config: Any) -> Record | None:
    """The newest evaluation by a config's tree; None where there is none."""
    wanted = printable_tree(config)
    return next((each for each in reversed(found) if each.get("config") == wanted), None)


def add_evaluation(path: Path, record: Record) -> list[str]:
    """Add an evaluation to a file; what is to be said of earlier ones.

    An evaluation of the same weights by the same config on the same images is replaced. A file that
    is none of ours is kept beside the new one.

    Args:
        path: the file.
        record: ``address``, sha256 of ``WEIGHTS``, ``config`` and what ``Evaluation.as_tree`` gives.

    Raises:
        RunError: if the file cannot be read or written; it stays as it is.
    """
    record = printable_tree(record)
    notices = []
    try:
        found = read_evaluations(path)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            os.replace(path, aside)
        except OSError as failure:
            raise RunError(f"cannot rename {path}: {failure.strerror}") from None
        found = []
        notices.append(f"{path} cannot be read ({error}); it is kept as {aside.name}")
    known = [each for each in found if each.get("address") != record["address"]]
    ours = [e for e in known if all(e.get(name) == record.get(name) for name in WEIGHTS)]
    if len(ours) < len(known):
        notices.append(
            f"{path} has numbers of other weights: they stand apart, under its evaluations"
        )
    notices += _replaced(ours, record)
    tree = {"format": FORMAT, **_joined(ours, record), "evaluations": [*known, record]}
    write_text(path, json.dumps(tree, indent=1, allow_nan=False))
    return notices


def printable_tree(value: Any) -> Any:
    """JSON values whose texts are printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(name)): printable_tree(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable_tree(each) for each in value]
    return value


def _is_record(value: Any) -> bool:
    """Whether a value is an evaluation, as far as it is looked at here."""
    if not isinstance(value, dict):
        return False
    metrics, protocol = value.get("metrics"), value.get("protocol")
    if not isinstance(metrics, dict) or not isinstance(protocol, dict):
        return False
    numbers = all(
        isinstance(each, (int, float)) and abs(each) < sys.float_info.max
        for each in metrics.values()
    )
    facts, details = protocol.get("metrics", {}), value.get("details", {})
    return (
        numbers
        and isinstance(details, dict)
        and isinstance(facts, dict)
        and all(isinstance(each, dict) for each in facts.values())
    )


def _joined(earlier: Sequence[Record], newest: Record) -> dict[str, Any]:
    """The newest evaluation with the numbers that it lacks; each of these with its whole protocol."""
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    protocols: dict[str, Any] = {}
    for record in earlier:
        metrics |= record["metrics"]
        details |= record.get("details", {})
        protocols |= {name: number_protocol(record["protocol"], name) for name in record["metrics"]}
    own = newest["protocol"].get("metrics", {})
    protocols = {k: v for k, v in protocols.items() if k not in newest["metrics"]} | own
    return {
        **newest,
        "metrics": metrics | newest["metrics"],
        "details": details | newest["details"],
        "protocol": {**newest["protocol"], "metrics": protocols},
    }


def _replaced(earlier: Sequence[Record], newest: Record) -> list[str]:
    """What is to be said of numbers that were measured differently before, by what differs."""
    latest: dict[str, Record] = {}
    for record in earlier:
        latest |= dict.fromkeys(record["metrics"], record)
    reasons: dict[str, list[str]] = {}
    for name, value in newest["metrics"].items():
        if name not in latest:
            continue
        before = latest[name]
        differences = protocol_differences(
            number_protocol(before["protocol"], name), number_protocol(newest["protocol"], name)
        )
        if differences:
            text = f"{name} = {before['metrics'][name]:.5g} by {value:.5g}"
            reasons.setdefault("; ".join(differences), []).append(text)
    return [
        f"replaces {', '.join(texts)}, which was measured differently before: {reason}"
        for reason, texts in reasons.items()
    ]

"""Rows of a study against each other: paired differences, the best of a column, and protocols."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from rpiae.evaluation.protocol import number_protocol, protocol_differences
from rpiae.studies.results import HIGHER, Column, RowResults, RunResults, StudyResults
from rpiae.studies.statistics import Statistics


@frozen(kw_only=True)
class PairedDifference:
    """First row minus second row, seed by seed.

    Attributes:
        metric: of which.
        by_seed: the difference by seed, of the seeds that both rows have, ascending.
        refused: why the two are not compared; empty where they are.
    """

    metric: str
    by_seed: Mapping[int, float]
    refused: str = ""

    @property
    def statistics(self) -> Statistics:
        """Statistics of the differences."""
        return Statistics(values=tuple(self.by_seed.values()))


def paired(first: RowResults, second: RowResults, metric: str) -> PairedDifference:
    """First minus second, of the seeds that both rows have.

    Numbers that were measured differently are not subtracted.
    """
    refused = measured_differently((first, second), metric)
    if refused:
        return PairedDifference(metric=metric, by_seed={}, refused=refused)
    ours, theirs = first.by_seed(metric), second.by_seed(metric)
    common = sorted(ours.keys() & theirs.keys())
    return PairedDifference(metric=metric, by_seed={s: ours[s] - theirs[s] for s in common})


def measured_differently(rows: Sequence[RowResults], metric: str) -> str:
    """Why a number of some rows cannot be compared; empty where it can."""
    protocols = [
        number_protocol(run.protocol, metric)
        for row in rows
        for run in row.measured
        if run.protocol is not None and metric in (run.metrics or {})
    ]
    differences = [
        text for other in protocols[1:] for text in protocol_differences(protocols[0], other)
    ]
    return "; ".join(dict.fromkeys(differences))


def best_rows(rows: Sequence[RowResults], column: Column) -> frozenset[str]:
    """Names of the rows with the best mean, ties included.

    None if the column has no better way, if fewer than two rows have a number (one is not the best),
    or if they were measured differently.
    Means that are written alike are alike: they are compared at the column's decimal places.
    """
    means = {row.name: row.statistics(column.metric).mean for row in rows}
    means = {k: round(v, column.digits) for k, v in means.items() if not math.isnan(v)}
    if len(means) < 2 or not column.better or measured_differently(rows, column.metric):
        return frozenset()
    best = (max if column.better == HIGHER else min)(means.values())
    return frozenset(name for name, mean in means.items() if mean == best)


@frozen(kw_only=True)
class ProtocolDifference:
    """A field of the protocol in which runs differ.

    Attributes:
        field: its path, such as ``images.count``.
        values: value → who has it (row, or row and seed where a row's seeds differ), the most
            frequent first.
    """

    field: str
    values: Mapping[str, tuple[str, ...]]

    def held_by(self) -> Iterator[tuple[str, str]]:
        """Each value with who has it, as text; a clear majority is called the others."""
        counts = sorted(map(len, self.values.values()), reverse=True)
        for value, names in self.values.items():
            most = len(names) == counts[0] > max(3, counts[1])
            yield value, f"the {len(names)} others" if most else ", ".join(names)


def flat(protocol: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested protocol as dotted path → text."""
    fields: dict[str, str] = {}
    for key, value in protocol.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            fields |= flat(value, f"{path}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            fields[path] = text
    return fields


def shared_protocol(results: StudyResults) -> dict[str, str]:
    """The fields in which all evaluated runs agree: path → text."""
    protocols = [flat(run.protocol) for _, run in results.runs if run.protocol is not None]
    first = protocols[0] if protocols else {}
    return {k: v for k, v in first.items() if all(p.get(k) == v for p in protocols)}


def differing_fields(results: StudyResults) -> tuple[ProtocolDifference, ...]:
    """The fields of the protocol in which evaluated runs differ.

    A metric that a run has not got, such as drift from a pivot where there is none, is no difference.
    """
    protocols = [(row, run, flat(run.protocol)) for row, run in results.runs if run.protocol]
    paths = dict.fromkeys(path for _, _, protocol in protocols for path in protocol)
    differences = []
    for path in paths:
        values = [
            (row, run, protocol.get(path, "not given"))
            for row, run, protocol in protocols
            if not _of_a_missing_metric(path, run)
        ]
        if len({value for _, _, value in values}) > 1:
            differences.append(ProtocolDifference(field=path, values=_holders(values)))
    return tuple(differences)


def _holders(values: Sequence[tuple[RowResults, RunResults, str]]) -> dict[str, tuple[str, ...]]:
    """Value → the rows that have it, or their runs where a row's own differ; the most first."""
    of_row: dict[str, set[str]] = {}
    for row, _, value in values:
        of_row.setdefault(row.name, set()).add(value)
    holders: dict[str, dict[str, None]] = {}
    for row, run, value in values:
        several = len(of_row[row.name]) > 1
        holder = f"{row.name} (seed {run.seed})" if several else row.name
        holders.setdefault(value, {})[holder] = None
    ordered = sorted(holders.items(), key=lambda item: -len(item[1]))
    return {value: tuple(names) for value, names in ordered}


def _of_a_missing_metric(path: str, run: RunResults) -> bool:
    """Whether a field is about a metric that a run has not got."""
    prefix, _, rest = path.partition(".")
    known = run.metrics or {}
    return prefix == "metrics" and not any(rest.startswith(f"{name}.") for name in known)

"""Whether two numbers were measured alike (torch-free)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rpiae.core.errors import UsageError

#: Where a tokenizer's numbers and their protocol are written.
EVALUATION_FILE = "evaluation.json"

#: What every number of an evaluation depends on, by its name in the evaluation's protocol.
CONDITIONS = (
    "crop", "count", "images_sha256", "frames", "stride", "frame_rate", "precision", "round",
)  # fmt: skip

#: What may differ between comparable numbers: libraries' versions, and where the same images lie.
IRRELEVANT = frozenset({"versions", "reference", "data", "location"})


def number_protocol(protocol: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All that a number depends on besides the tokenizer.

    Args:
        protocol: of an evaluation.
        name: of the number.
    """
    conditions = {key: protocol[key] for key in CONDITIONS if key in protocol}
    return conditions | dict(protocol.get("metrics", {}).get(name, {}))


def protocol_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Why two numbers cannot be compared; empty where they can.

    Args:
        one, other: their ``number_protocol``.
    """
    return different(one, other)


def different(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields that differ between two nested protocols, with both values."""
    found = []
    for name in dict.fromkeys([*one, *other]):
        here, there = one.get(name), other.get(name)
        if name in IRRELEVANT or here == there:
            continue
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += different(here, there, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}: {shortened(here)} and {shortened(there)}")
    return found


def check_comparable(name: str, protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare a number of tokenizers that was measured in different ways.

    Args:
        name: of the number.
        protocols: tokenizer → the number's protocol.

    Raises:
        UsageError: with what differs.
    """
    first, *others = protocols
    for other in others:
        found = protocol_differences(protocols[first], protocols[other])
        if found:
            raise UsageError(
                f"{name} of {first} and of {other} cannot be compared, they were measured "
                f"differently: {'; '.join(found)}"
            )


def shortened(value: Any) -> str:
    """A value for a message: words as they are, of digests and tables the beginning and the end."""
    if isinstance(value, str) and " " in value:
        return value
    text = json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…{text[-8:]}"

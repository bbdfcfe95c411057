"""Whether two Fréchet distances were measured alike (torch-free)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rpiae.core.errors import UsageError

#: What two Fréchet distances must share to be comparable.
COMPARABLE = ("images_sha256", "count", "crop", "precision", "extractor")


def protocol_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Why two Fréchet distances cannot be compared; empty where they can.

    Args:
        one, other: what ``evaluation.json`` holds under ``protocol`` for a metric.
    """
    return [
        f"{name}: {shortened(one.get(name))} and {shortened(other.get(name))}"
        for name in COMPARABLE
        if one.get(name) != other.get(name)
    ]


def check_comparable(name: str, protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare a metric of tokenizers that was measured in different ways.

    Args:
        name: of the metric.
        protocols: tokenizer → the metric's protocol.

    Raises:
        UsageError: with what differs.
    """
    first, *others = protocols
    for other in others:
        different = protocol_differences(protocols[first], protocols[other])
        if different:
            raise UsageError(
                f"{name} of {first} and of {other} cannot be compared, they were measured "
                f"differently: {'; '.join(different)}"
            )


def shortened(value: Any) -> str:
    """A value for a message: its beginning and end, where it is long."""
    text = json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…{text[-8:]}"

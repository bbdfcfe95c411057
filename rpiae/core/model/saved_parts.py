"""The parts in a saved model's ``config.json``: names and values only, and who brought them."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rpiae.core.config.parts import PartConfig
from rpiae.core.config.tree import unparse
from rpiae.core.errors import CheckpointError, RunError, UnknownNameError, UsageError
from rpiae.core.model.resolve import part_config
from rpiae.core.registry.entries import THIS_PROCESS
from rpiae.core.registry.importing import import_hint
from rpiae.core.registry.registry import registry

#: What a part may raise when it is built from values that make no sense to it.
_UNFIT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


#: Dtypes that weights may have, by their names in safetensors files.
FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


def written_parts(parts: Mapping[str, PartConfig]) -> dict[str, Any]:
    """What is written of parts, by role; ``read_parts`` reads it."""
    entries = {role: registry(part.family).entry(part.name) for role, part in parts.items()}
    versions = {}
    for name in sorted({entry.distribution for entry in entries.values()} | {"rpiae"}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        **{role: unparse(part) for role, part in parts.items()},
        "sources": {role: entry.distribution for role, entry in entries.items()},
        # For messages; nothing is imported because a file says so.
        "modules": {
            role: entry.target.partition(":")[0]
            for role, entry in entries.items()
            if not entry.importable
        },
        "versions": versions,
    }


def read_parts(
    saved: Mapping[str, Any], families: Mapping[str, str], source: str
) -> dict[str, PartConfig]:
    """The parts of a saved config.

    Args:
        saved: the config.
        families: of each role that has to be there.
        source: the folder, for messages.

    Raises:
        CheckpointError: if a part is missing, unknown here, or does not fit this version of it.
    """
    sources, versions, modules = (
        _texts(saved, name, source) for name in ("sources", "versions", "modules")
    )
    parts = {}
    for role, family in families.items():
        table = saved.get(role)
        if not isinstance(table, dict):
            problem = f"its {role} is no table" if role in saved else f"it has no {role}"
            raise CheckpointError(f"{source}: config.json: {problem}")
        try:
            with fitting(source):
                parts[role] = part_config(family, table)
        except UnknownNameError as error:
            distribution = sources.get(role, "another distribution")
            if distribution == THIS_PROCESS:
                raise CheckpointError(
                    f"{source} was saved with {role} {table.get('name')!r}, which is not known here: "
                    f"{import_hint([modules.get(role, '')])}"
                ) from None
            raise CheckpointError(
                f"{source} was saved with {role} {table.get('name')!r} of {distribution} "
                f"{versions.get(distribution, '')}, which is not installed here: "
                f"pip install {distribution} ({error})"
            ) from None
    return parts


def _texts(saved: Mapping[str, Any], name: str, source: str) -> dict[str, str]:
    texts = saved.get(name, {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise CheckpointError(f"{source}: config.json: its {name} are no table of texts")
    return texts


@contextlib.contextmanager
def fitting(source: str) -> Iterator[None]:
    """Where values of a file are given to parts: what these raise is about the file."""
    try:
        yield
    except (UnknownNameError, RunError):
        raise
    except UsageError as error:
        raise CheckpointError(f"{source} does not fit this version of its parts: {error}") from None
    except _UNFIT as error:
        raise CheckpointError(
            f"{source}: config.json describes no model that can be built: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error

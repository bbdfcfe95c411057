"""Models that ship with rpiae, in ``rpiae/pretrained``; found without torch."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

from attrs import frozen

#: The folder below, if any, that holds a model, and what is in it.
_KINDS = {"": "tokenizer", "generator": "generator"}


@frozen(kw_only=True)
class Shipped:
    """A model that ships with rpiae.

    Attributes:
        name: by which it is loaded.
        kind: ``tokenizer`` or ``generator``.
        summary: the heading of its card, without the name.
        tokenizer: name of the tokenizer of a generator; empty for others.
    """

    name: str
    kind: str
    summary: str
    tokenizer: str


def shipped_folders() -> dict[str, Path]:
    """Their folders, by name."""
    package = importlib.resources.files(__name__.partition(".")[0])
    folder = Path(str(package / "pretrained"))
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def shipped_models() -> list[Shipped]:
    """All of them, by what their folders say."""
    found = []
    for name, folder in shipped_folders().items():
        for below, kind in _KINDS.items():
            if (folder / below / "config.json").is_file():
                found.append(_described(name, kind, folder, below))
                break
    return found


def _described(name: str, kind: str, folder: Path, below: str) -> Shipped:
    config = json.loads((folder / below / "config.json").read_text(encoding="utf-8"))
    heading = (folder / "README.md").read_text(encoding="utf-8").partition("\n")[0]
    return Shipped(
        name=name,
        kind=kind,
        summary=heading.partition(":")[2].strip(),
        tokenizer=config.get("latents", {}).get("tokenizer", ""),
    )

"""What the local cache of the Hugging Face hub knows, without any download (torch-free)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})(?:/(.*))?$", re.DOTALL)


class Snapshot(NamedTuple):
    """Where a file or folder of the cache is from; nothing of it is said where it lies elsewhere.

    Attributes:
        repository: owner and name.
        commit: of the repository.
        name: within it; empty for its top.
    """

    repository: str = ""
    commit: str = ""
    name: str = ""


def snapshot_of(path: Path) -> Snapshot:
    """Where a file or folder of the cache is from, as its path says."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    if found is None:
        return Snapshot()
    return Snapshot(found[1].replace("--", "/"), found[2], found[3] or "")


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, which nobody can move."""
    return _COMMIT.fullmatch(revision) is not None


def cached_commit(
    repository: str, revision: str, *, kind: Literal["models", "datasets"] = "models"
) -> str:
    """The commit that a branch or tag stood for when it was last downloaded (HF_HOME).

    Args:
        repository: owner and name.
        revision: a branch, tag or commit; a commit stands for itself.
        kind: of the repository.

    Returns:
        Nothing where it was never downloaded.
    """
    from huggingface_hub import constants

    if is_commit(revision):
        return revision
    folder = f"{kind}--{repository.replace('/', '--')}"
    try:
        text = Path(constants.HF_HUB_CACHE, folder, "refs", revision).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
    return text if is_commit(text) else ""

"""What the local cache of the Hugging Face hub knows, without any download (torch-free)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

_COMMIT = re.compile(r"[0-9a-f]{40}")


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

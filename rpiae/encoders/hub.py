"""Encoders' weights from local files, the Hugging Face hub and https, with errors that name ways out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rpiae.core.errors import FetchError
from rpiae.core.runtime.download import fetch_hub, fetch_url, unfetched
from rpiae.core.runtime.weight_files import named_file

#: File names tried on the hub, in this order.
FILES = (
    "model.safetensors", "open_clip_model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def local_weights(path: str, label: str) -> Path:
    """``path`` as an existing file.

    Raises:
        CheckpointError: if there is none, or it is a folder, a FIFO or the like.
    """
    return named_file(path, owner=f"encoder {label!r}")


def download(hub_id: str, revision: str, *, label: str, files: Sequence[str] = FILES) -> Path:
    """Path of a hub repository's weights in the local cache, downloaded where necessary.

    Args:
        hub_id: owner and name of the repository.
        revision: branch, tag or commit.
        label: the encoder, for messages.
        files: names to try, in this order.

    Raises:
        FetchError: if they are neither cached nor reachable.
    """
    try:
        return fetch_hub(hub_id, revision, files)
    except FetchError as error:
        where = f"https://huggingface.co/{hub_id} (revision {revision})"
        raise _unfetched(label, where, error, cache="HF_HOME") from None


def download_url(url: str, *, label: str) -> Path:
    """Path of a file in torch's cache of checkpoints, downloaded over https where necessary.

    Raises:
        FetchError: if it is neither cached nor reachable, or arrives damaged.
    """
    try:
        return fetch_url(url)
    except FetchError as error:
        raise _unfetched(label, url, error, cache="TORCH_HOME") from None


def _unfetched(label: str, where: str, error: FetchError, *, cache: str) -> FetchError:
    ways_out = (
        f"run `rpiae fetch {label}` on a machine with network and copy its cache ({cache}); name a "
        "local file with --set encoder.weights=PATH; or start from random weights with "
        "--set encoder.pretrained=false."
    )
    return unfetched(f"encoder {label!r}", where, error, ways_out=ways_out)

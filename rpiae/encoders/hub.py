"""Weights from local files, the Hugging Face hub and plain https, with errors that name the ways out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError, FetchError
from rpiae.core.fetching import downloads_are_refused

#: File names tried on the hub, in this order.
FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")

#: What training scripts wrap a state dict in; I-JEPA keeps its context encoder under ``encoder``.
WRAPPERS = ("state_dict", "model", "encoder")

_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
_DIGEST_IN_PATH = re.compile(r"/([0-9a-f]{64})/")


def local_weights(path: str, label: str) -> Path:
    """``path`` as an existing file.

    Raises:
        CheckpointError: if there is none.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise CheckpointError(f"weights of encoder {label!r}: there is no file {found}")
    return found


def download(hub_id: str, revision: str, *, label: str, files: Sequence[str] = FILES) -> Path:
    """Path of a hub repository's weights in the local cache, downloaded where necessary.

    Honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN.

    Args:
        hub_id: owner and name of the repository.
        revision: branch, tag or commit.
        label: the encoder, for messages.
        files: names to try, in this order.

    Raises:
        FetchError: if they are neither cached nor reachable.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    reason, offline = "", downloads_are_refused()
    for name in files:
        try:
            return Path(hf_hub_download(hub_id, name, revision=revision, local_files_only=offline))
        except LocalEntryNotFoundError as error:
            offline = True
            cause = _cause(error)
            reason = reason or f"it is not in the cache and the hub cannot be reached ({cause})"
        except EntryNotFoundError:
            reason = f"the repository has none of {', '.join(files)}"
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            break
    where = f"https://huggingface.co/{hub_id} (revision {revision})"
    raise _unfetched(label, where, reason, cache="HF_HOME")


def download_url(url: str, *, label: str) -> Path:
    """Path of a file in torch's cache of checkpoints, downloaded over https where necessary.

    Where the address holds a SHA-256 (in the file's name, or as a folder), it is checked. Honours
    HF_HUB_OFFLINE and TORCH_HOME.

    Raises:
        FetchError: if it is neither cached nor reachable, or arrives damaged.
    """
    parts = urlsplit(url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(parts.path).name
    if cached.is_file():
        return cached
    if parts.scheme != "https":
        raise _unfetched(label, url, "only https addresses are fetched", cache="TORCH_HOME")
    if downloads_are_refused() or os.environ.get("HF_HUB_OFFLINE", "").upper() in (
        "1",
        "ON",
        "YES",
        "TRUE",
    ):
        reason = "it is not in the cache, and HF_HUB_OFFLINE is set"
        raise _unfetched(label, url, reason, cache="TORCH_HOME")
    digest = _DIGEST_IN_NAME.search(cached.name) or _DIGEST_IN_PATH.search(parts.path)
    cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            url, str(cached), hash_prefix=digest.group(1) if digest else None, progress=True
        )
    except (OSError, RuntimeError) as error:
        raise _unfetched(label, url, str(error).splitlines()[0], cache="TORCH_HOME") from None
    return cached


def read_weights(path: Path, *, under: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file; no code is run from it.

    Args:
        path: the file.
        under: prefixes. Only the tensors under the first of them that the file has any of are
            kept, without it, and only these are read from a safetensors file; all where it has none.

    Raises:
        CheckpointError: if it is neither.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                wanted = _wanted(file.keys(), under)
                return {name: file.get_tensor(stored) for name, stored in wanted.items()}
        state = _torch_load(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read as weights: {first}") from None
    except Exception as error:  # torch raises pickle's errors, which share no useful base
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(f"{path} is not a plain weights file: {first}") from None
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a table of tensors")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: tensors[stored] for name, stored in _wanted(tensors, under).items()}


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, source: object) -> None:
    """Load what ``module`` has parameters and buffers for; further tensors are left out.

    Raises:
        CheckpointError: if any is missing or of another shape; it names an example.
    """
    own = module.state_dict()
    missing = sorted(name for name in own if name not in state)
    wrong = sorted(n for n in own if n in state and own[n].shape != state[n].shape)
    if missing or wrong:
        example = (
            f"{wrong[0]} is {tuple(state[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
            if wrong
            else f"{missing[0]} is missing"
        )
        raise CheckpointError(
            f"{source} holds weights of another architecture: {len(missing)} tensors missing, "
            f"{len(wrong)} of another shape ({example})"
        )
    module.load_state_dict({name: state[name] for name in own})


def _torch_load(path: Path) -> Any:
    # Mapped files are read as their tensors are; files of torch < 1.6 cannot be mapped.
    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _wanted(stored: Sequence[str] | Mapping[str, Tensor], under: Sequence[str]) -> dict[str, str]:
    """Name → stored name, of the tensors to keep."""
    plain = {name.removeprefix("module."): name for name in stored}
    for prefix in under:
        found = {n.removeprefix(prefix): s for n, s in plain.items() if n.startswith(prefix)}
        if found:
            return found
    return plain


def _unfetched(label: str, where: str, reason: str, *, cache: str) -> FetchError:
    return FetchError(
        f"the weights of encoder {label!r} could not be fetched from {where}: {reason}. Ways out: "
        f"run `rpiae fetch {label}` on a machine with network and copy its cache ({cache}); name a "
        "local file with --set encoder.weights=PATH; or start from random weights with "
        "--set encoder.pretrained=false."
    )


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__

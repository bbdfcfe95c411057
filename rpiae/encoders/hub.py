"""Weights from local files and from the Hugging Face hub, with errors that name the ways out."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rpiae.core.errors import CheckpointError, FetchError

#: File names tried on the hub, in this order.
FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")


def local_weights(path: str, label: str) -> Path:
    """``path`` as an existing file.

    Raises:
        CheckpointError: if there is none.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise CheckpointError(f"weights of encoder {label!r}: there is no file {found}")
    return found


def download(hub_id: str, revision: str, *, label: str) -> Path:
    """Path of a hub repository's weights in the local cache, downloaded where necessary.

    Honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN.

    Raises:
        FetchError: if they are neither cached nor reachable.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    reason = ""
    for name in FILES:
        try:
            return Path(hf_hub_download(hub_id, name, revision=revision))
        except LocalEntryNotFoundError as error:
            reason = f"it is not in the cache and the hub cannot be reached ({_cause(error)})"
            break
        except EntryNotFoundError:
            reason = f"the repository has none of {', '.join(FILES)}"
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            break
    raise FetchError(
        f"the weights of encoder {label!r} could not be fetched from "
        f"https://huggingface.co/{hub_id} (revision {revision}): {reason}. Ways out: run "
        f"`rpiae fetch {label}` on a machine with network and copy its cache (HF_HOME); name a "
        "local file with --set encoder.weights=PATH; or start from random weights with "
        "--set encoder.pretrained=false."
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file; no code is run from it.

    Raises:
        CheckpointError: if it is neither.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from None
    except Exception as error:  # torch raises pickle's errors, which share no useful base
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(f"{path} is not a plain weights file: {first}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__

"""Files of weights that somebody else wrote, as tables of tensors; a file is known by its content.

safetensors, torch's archives and its older pickles, and the JSON index of a file in shards. Nothing in
a file is run, and nothing outside its folder is read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable, shown

_log = logging.getLogger(__name__)

Getter = Callable[[], Tensor]

#: Table within a file → name → how to get the tensor.
Tables = dict[str, dict[str, Getter]]

#: Words in the place of weights that are averages of others.
AVERAGED = re.compile(r"(^|[._])(ema|teacher|swa|averaged|shadow)([._]|$)")

_INDEX = "weight_map"
_MOST_INDEX_BYTES = 100_000_000
_ZIP = b"PK\x03\x04"
_TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OTHERS = (
    (
        b"version https://git-lfs",
        "it is a git-lfs pointer, not the weights: run `git lfs pull` in its repository",
    ),
    (b"<", "it is a web page: what was downloaded is not the file itself"),
    (b"\x1f\x8b", "it is compressed (gzip): unpack it first"),
    (b"\x89HDF", "it is an HDF5 file: convert it to safetensors"),
    (b"GGUF", "it is a GGUF file: convert it to safetensors"),
)

#: Folders hold these; a message names the ones that are there.
_USUAL = (
    "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def expanded(path: str) -> Path:
    """A path as a user writes it: ``~`` and ``~name`` are homes, where there is such a one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def named_file(path: str, *, owner: str) -> Path:
    """The file of weights that a user named.

    Args:
        path: as the user wrote it.
        owner: whose weights they are, for messages, such as ``"loss 'lpips'"``.

    Raises:
        CheckpointError: if there is none, or it is a folder, a FIFO or the like.
    """
    file = expanded(path)
    try:
        with _named(file):
            _head(file)
    except CheckpointError as error:
        raise CheckpointError(f"weights of {owner}: {error}") from None
    return file


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises:
        CheckpointError: if it is none.
    """
    with _named(path):
        head, size = _head(path)
        if not _is_safetensors(head, size):
            raise CheckpointError(_reason(head))
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no dict
            return tensors, file.metadata() or {}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Tables]:
    """The tables of tensors in a file, by content.

    Raises:
        CheckpointError: if it is missing or cannot be read; the message begins with its name.
    """
    with contextlib.ExitStack() as stack, _named(path):
        head, size = _head(path)
        if head.lstrip().startswith(b"{") and not _is_safetensors(head, size):
            yield {"": _of_index(path, size, stack)}
        else:
            yield _tables(path, stack)


def read_index(path: Path, size: int) -> dict[str, str]:
    """Tensor → file of the same folder, as the index of a file in shards says.

    Raises:
        CheckpointError: if it is no such index, or names a file elsewhere.
    """
    if size > _MOST_INDEX_BYTES:
        raise CheckpointError("it begins as JSON, and is too large for an index of shards")
    with open_regular(path) as file:
        try:
            index = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"it begins as JSON, and is none ({error})") from None
    where = index.get(_INDEX) if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"it is JSON, but no index of shards: it has no {_INDEX!r}")
    for name, shard in where.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", "..", "."):
            raise CheckpointError(
                f"its {_INDEX} says {shown(shard)} for {shown(name)}: shards lie beside the index"
            )
    return where


def _tables(path: Path, stack: contextlib.ExitStack) -> Tables:
    """The tables of one file that is no index."""
    head, size = _head(path)
    if _is_safetensors(head, size):
        file = stack.enter_context(safe_open(path, framework="pt"))
        return {"": {name: _getter(file, name) for name in file.keys()}}  # noqa: SIM118 # no dict
    if head.startswith((_ZIP, _TORCH_PICKLE)):
        return _flat(_torch_load(path, mapped=head.startswith(_ZIP)), size, path)
    raise CheckpointError(_reason(head))


def _of_index(path: Path, size: int, stack: contextlib.ExitStack) -> dict[str, Getter]:
    """The tensors of all shards that an index names; they lie beside it."""
    shards: dict[str, dict[str, Getter]] = {}
    tensors = {}
    for name, shard in read_index(path, size).items():
        if shard not in shards:
            with _named(path.with_name(shard)):
                shards[shard] = _tables(path.with_name(shard), stack)[""]
        if name not in shards[shard]:
            raise CheckpointError(f"{name} is not in {shard}, where the index says that it is")
        tensors[name] = shards[shard][name]
    return tensors


def _getter(file: Any, name: str) -> Getter:
    return lambda: file.get_tensor(name)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever reading a file raises, as a CheckpointError that begins with the file's name."""
    named = printable(str(path))
    try:
        yield
    except CheckpointError as error:
        if str(error).startswith(named):
            raise
        raise CheckpointError(f"{named} cannot be read as weights: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {named}") from None
    except IsADirectoryError:
        there = [name for name in _USUAL if (path / name).is_file()]
        hint = f": name a file in it, such as {path / there[0]}" if there else ""
        raise CheckpointError(f"{named} is a folder, not a weights file{hint}") from None
    except OSError as error:
        raise CheckpointError(
            f"{named} cannot be read as weights: {error.strerror or error}"
        ) from None
    except (SafetensorError, ValueError, MemoryError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{named} cannot be read as weights: {first}") from None


def _head(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and how many it has."""
    with open_regular(path) as file:
        head = file.read(512)
        return head, file.seek(0, 2)


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file begins with the length of a JSON header that fits into it, and a brace."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _reason(head: bytes) -> str:
    if not head:
        return "it is empty"
    for magic, meaning in _OTHERS:
        if head.lstrip().startswith(magic):
            return meaning
    if head[8:9] == b"{":
        return "it is a safetensors file that is cut short, or its header is damaged"
    return (
        "it is neither a safetensors file, nor a torch file, nor an index of shards, but begins "
        f"with {head[:12]!r}"
    )


def _torch_load(path: Path, *, mapped: bool) -> Any:
    """What a torch file holds, with tensors that are read when they are used (where mapped)."""
    try:
        if mapped and not _is_torch_archive(path):
            raise CheckpointError("it is a zip archive, as .npz files are, and not one of torch")
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_harmless()),
            _plainly_named(path) as name,
        ):
            warnings.simplefilter("ignore")  # torch's advice to its own developers
            return torch.load(name, map_location="cpu", weights_only=True, mmap=mapped)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # damaged pickles raise anything: KeyError, TypeError, IndexError …
        raise CheckpointError(_torch_reason(error)) from None


def _is_torch_archive(path: Path) -> bool:
    """Whether a zip archive holds a pickle where torch puts it."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())


@contextlib.contextmanager
def _plainly_named(path: Path) -> Iterator[Path]:
    """A file under a name that torch takes: it must be UTF-8, and not that of a safetensors file."""
    if printable(str(path)) == str(path) and not path.name.endswith(".safetensors"):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "weights.pth")
        link.symlink_to(path.absolute())
        yield link


def _torch_reason(error: Exception) -> str:
    text = str(error)
    forbidden = re.search(r"GLOBAL (\S+)", text)
    if forbidden:
        return (
            f"not a plain weights file: it holds {printable(forbidden.group(1))}, which may run code "
            "and is not loaded. Save its tensors alone: torch.save(model.state_dict(), PATH)"
        )
    if "TorchScript" in text:
        return (
            "not a plain weights file but a TorchScript archive. Save its tensors alone: "
            "torch.save(torch.jit.load(PATH).state_dict(), OTHER)"
        )
    text = text.rpartition("WeightsUnpickler error: ")[2]
    first = printable((text.strip().splitlines() or [type(error).__name__])[0])[:200]
    return (
        f"torch cannot read it ({type(error).__name__}: {first}): it is damaged, or was not written "
        "by torch.save with its own protocol"
    )


def _harmless() -> list[Any]:
    """What training scripts store beside tensors and that can do nothing: options and numbers."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    return [
        argparse.Namespace, np.dtype, np.ndarray,
        *{type(np.dtype(code)) for code in np.typecodes["All"]},
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *((PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "_local.PosixPath")),
        *((PureWindowsPath, f"pathlib.{name}") for name in ("WindowsPath", "_local.WindowsPath")),
    ]  # fmt: skip


def _flat(content: Any, size: int, path: Path) -> Tables:
    """The tables of tensors in nested dicts, by their place, such as ``"teacher"``.

    Averages that are kept as a list have no names to be taken by, which is logged.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"it holds a {type(content).__name__}, not a table of tensors")
    tables: Tables = {}
    waiting: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    seen = {id(content)}
    for place, table in waiting:
        tables[place] = {
            str(name): _constant(value)
            for name, value in table.items()
            if isinstance(value, Tensor) and _fits(str(name), value, size)
        }
        for name, value in table.items():
            within = f"{place}.{name}" if place else str(name)
            if isinstance(value, Mapping) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((within, value))
            elif AVERAGED.search(within) and _is_list_of_tensors(value):
                _log.warning(
                    "%s has averaged weights as a list under %s: they have no names and cannot be "
                    "taken. Save them as a state dict to load them",
                    printable(str(path)), printable(within),
                )  # fmt: skip
    return tables


def _is_list_of_tensors(value: Any) -> bool:
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and all(isinstance(each, Tensor) for each in value)


def _constant(value: Tensor) -> Getter:
    return lambda: value.detach()


def _fits(name: str, value: Tensor, size: int) -> bool:
    """Whether a tensor can be in a file of that many bytes; a damaged one may claim any size."""
    if value.layout is torch.strided and value.numel() * value.element_size() > size:
        raise CheckpointError(
            f"{printable(name)} claims to be {tuple(value.shape)}, more than the file holds"
        )
    return True

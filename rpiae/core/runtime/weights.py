"""Foreign weights: one reader for every file that somebody else wrote, and one way into a module.

A file is known by its content, never by its name: safetensors, torch's archives and its older
pickles, and the JSON index of a file in shards. Nothing in it is run, and nothing outside its folder
is read. The tensors of a model are found by names that its layout must have (a *signature*), under
whatever prefix a training script, a wrapper or a larger model put before them. What a file has for a
model is either loaded, or known to be unused, or refused.
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable, shown

_log = logging.getLogger(__name__)

#: Names that a layout must have; the first is what messages call missing.
Signature = Sequence[str]

Getter = Callable[[], Tensor]

#: Table within a file → name → how to get the tensor.
Tables = dict[str, dict[str, Getter]]

#: ``weights_key`` of what stands at a file's top level.
TOP = "."

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

#: Narrower ones mean something only with the scales that they were packed with.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_AVERAGED = re.compile(r"(^|[._])(ema|teacher|swa|averaged|shadow)([._]|$)")
#: What torch.compile, DDP, FSDP, checkpointing and DeepSpeed put into names, anywhere.
_WRAPPERS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")

#: What no model computes with, in whatever layout.
_BOOKKEEPING = (
    ".num_batches_tracked", "n_averaged", "position_ids", ".relative_position_index", ".bias_mask",
)  # fmt: skip

#: What names of tensors stand for, in the layouts of this field.
_MEANINGS = (
    (r"(^|\.)(ls\d?|ls_\d|layer_scale\d?|gamma_\d|lambda\d?)(\.|$)",
     "LayerScale; a model that has it, or init_values in timm's model_args, takes it"),
    (r"(reg|register|storage)_tokens?", "register tokens"),
    (r"(cls_token|class_embedding|dist_token)", "a class token"),
    (r"(rel_pos|relative_position)", "relative positions"),
    (r"\.[qk]_norm\.", "norms of queries and keys"),
    (r"(pos_embed|position)", "position embeddings"),
    (r"\.(qkv|q|k|v|proj|fc\d|w\d+)[._]?bias$", "a bias"),
)  # fmt: skip


class _Set(NamedTuple):
    """The weights of one model in a file: a table in it, and a prefix of names in that."""

    table: str
    prefix: str

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.table, self.prefix.rstrip(".")) if part) or TOP


def read_weights(
    path: Path, *, what: str, signatures: Sequence[Signature], key: str = ""
) -> dict[str, Tensor]:
    """A model's tensors out of a file, without the prefix that they stand under there.

    Where the file has several (raw and averaged weights, student and teacher), the averaged ones are
    taken, else the first, and a warning is logged that names all of them. Only the tensors asked
    for are read from a safetensors file.

    Args:
        path: safetensors, a torch file, or the index of a file in shards.
        what: the model in words, for messages.
        signatures: names that the model's layouts have, one tuple per layout.
        key: which weights to take where the file has several: the beginning of their place in it,
            such as ``"model_ema"`` or ``"student"``; ``"."`` is the top level.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, or has no such model.
    """
    with opened(path) as tables:
        sets = list(_sets(tables, signatures))
        if not sets:
            missing = _lacking(tables, signatures)
            raise CheckpointError(
                f"{printable(str(path))} holds weights of another architecture than {what}: "
                f"{missing} is missing, under any prefix. {_examples(tables)}"
            )
        chosen = _chosen(sets, key, path)
        inner = tuple(
            other.prefix
            for other in sets
            if other.table == chosen.table and len(other.prefix) > len(chosen.prefix)
        )
        found = {
            name: get()
            for name, get in tables[chosen.table].items()
            if name.startswith(chosen.prefix) and not (inner and name.startswith(inner))
        }
    for name, value in found.items():
        check_plain(printable(str(path)), name, value)
    return _unwrapped({name.removeprefix(chosen.prefix): v for name, v in found.items()})


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: object,
    unused: Collection[str] = (),
    called: Mapping[str, str] | None = None,
) -> None:
    """Load a whole state: everything the module has, and nothing left over.

    Args:
        module: takes the values in its own precision.
        state: by the module's names; what else it has must be unused.
        source: what messages call it, as a rule the file.
        unused: beginnings of names that this module is known to have no use for.
        called: the module's names → those of the file, where they differ.

    Raises:
        CheckpointError: if a tensor is missing, of another shape or kind, left over, or not finite;
            it is named.
    """
    own = module.state_dict()
    names = called or {}
    missing = sorted(name for name in own if name not in state)
    wrong = sorted(n for n in own if n in state and own[n].shape != state[n].shape)
    if missing or wrong:
        example = (
            f"{names.get(wrong[0], wrong[0])} is {tuple(state[wrong[0]].shape)}, not "
            f"{tuple(own[wrong[0]].shape)}"
            if wrong
            else f"{names.get(missing[0], missing[0])} is missing{_of_shards(source)}"
        )
        raise CheckpointError(
            f"{source} holds weights of another architecture: {len(missing)} tensors missing, "
            f"{len(wrong)} of another shape ({example})"
        )
    left = [n for n in state if n not in own and not _is_unused(n, unused)]
    if left:
        example = printable(names.get(left[0], left[0]))
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise CheckpointError(
            f"{source} has {example}{more}, which this model has no place for"
            f"{_meaning(left[0], own)}"
        )
    for name, value in own.items():
        _check_values(source, names.get(name, name), state[name], value)
    module.load_state_dict({name: state[name] for name in own})


def check_plain(source: object, name: str, value: Tensor) -> None:
    """Refuse what is no plain tensor of numbers: sparse, quantised, packed or without values.

    Raises:
        CheckpointError: if it is none; the tensor is named.
    """
    packed = value.is_floating_point() and value.dtype not in _FLOATS
    strange = value.layout is not torch.strided or value.is_quantized or value.is_meta
    if packed or strange:
        kinds = {"sparse": value.layout is not torch.strided, "without values": value.is_meta}
        given = next((kind for kind, is_so in kinds.items() if is_so), "quantised")
        raise CheckpointError(
            f"{source}: {printable(name)} is of type {_type(value)}, {given}, and not a plain tensor "
            "of float16, bfloat16, float32 or float64: convert the file"
        )


def check_finite(source: object, name: str, value: Tensor) -> None:
    """Refuse weights that are infinite or no numbers.

    Raises:
        CheckpointError: if any is; the tensor is named.
    """
    if value.is_floating_point() and not value.isfinite().all():
        raise CheckpointError(
            f"{source}: {printable(name)} has values that are not finite, so every image would "
            "become NaN: the file is damaged, or its training had diverged"
        )


def expanded(path: str) -> Path:
    """A path as a user writes it: ``~`` and ``~name`` are homes, where there is such a one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def require_file(path: Path) -> None:
    """See that a path is a file that can be opened.

    Raises:
        CheckpointError: if there is none, or it is a folder, a FIFO or the like.
    """
    with _named(path):
        _head(path)


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


def _tables(path: Path, stack: contextlib.ExitStack) -> Tables:
    """The tables of one file that is no index."""
    head, size = _head(path)
    if _is_safetensors(head, size):
        file = stack.enter_context(safe_open(path, framework="pt"))
        return {"": {name: _getter(file, name) for name in file.keys()}}  # noqa: SIM118 # no dict
    if head.startswith((_ZIP, _TORCH_PICKLE)):
        return _flat(_torch_load(path, mapped=head.startswith(_ZIP)), size, path)
    raise CheckpointError(_reason(head))


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without the words that wrappers put into names; as it is where two would be one."""
    found = {_without_wrappers(name): value for name, value in state.items()}
    return found if len(found) == len(state) else state


def _without_wrappers(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in _WRAPPERS)


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
    found = re.search(r"GLOBAL (\S+)", text)
    if found:
        return (
            f"not a plain weights file: it holds {printable(found.group(1))}, which may run code "
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
            elif _AVERAGED.search(within) and _is_list_of_tensors(value):
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


def _of_index(path: Path, size: int, stack: contextlib.ExitStack) -> dict[str, Getter]:
    """The tensors of all shards that an index names; they lie beside it."""
    shards: dict[str, dict[str, Getter]] = {}
    found = {}
    for name, shard in read_index(path, size).items():
        if shard not in shards:
            with _named(path.with_name(shard)):
                shards[shard] = _tables(path.with_name(shard), stack)[""]
        if name not in shards[shard]:
            raise CheckpointError(f"{name} is not in {shard}, where the index says that it is")
        found[name] = shards[shard][name]
    return found


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


def _sets(tables: Tables, signatures: Sequence[Signature]) -> Iterator[_Set]:
    seen = set()
    for place, table in tables.items():
        for first, *others in signatures:
            for name in table:
                prefix = _prefix(name, first)
                if prefix is None:
                    continue
                found = _Set(place, prefix)
                if found not in seen and _has(table, prefix, others):
                    seen.add(found)
                    yield found


def _prefix(name: str, wanted: str) -> str | None:
    """What stands before a name, or None where it is another one; wrappers within are passed over."""
    bare = _without_wrappers(name)
    if bare != wanted and not bare.endswith(f".{wanted}"):
        return None
    words = name.split(".")
    own = [index for index, word in enumerate(words) if word not in _WRAPPERS]
    before = words[: own[-len(wanted.split("."))]]
    return "".join(f"{word}." for word in before)


def _has(table: Collection[str], prefix: str, wanted: Sequence[str]) -> bool:
    """Whether all names stand in a table under a prefix."""
    names = {_without_wrappers(n.removeprefix(prefix)) for n in table if n.startswith(prefix)}
    return names.issuperset(wanted)


def _chosen(sets: Sequence[_Set], key: str, path: Path) -> _Set:
    labels = ", ".join(found.label for found in sets)
    fitting = [s for s in sets if not key or s.label == key or s.label.startswith(f"{key}.")]
    if not fitting:
        raise CheckpointError(
            f"{printable(str(path))} has no weights of this model under {key!r} (weights_key); it "
            f"has them under {printable(labels)}"
        )
    chosen, *others = sorted(fitting, key=lambda found: not _AVERAGED.search(found.label))
    if others:
        kind = ", the averaged ones" if _AVERAGED.search(chosen.label) else ", the first"
        _log.warning(
            "%s has weights of this model under %s: those under %s are loaded%s. "
            "weights_key takes others",
            printable(str(path)), printable(labels), printable(chosen.label), kind,
        )  # fmt: skip
    return chosen


def _lacking(tables: Tables, signatures: Sequence[Signature]) -> str:
    """The first name of the first signature that stands nowhere in the tables."""
    names = [f".{_without_wrappers(name)}" for table in tables.values() for name in table]
    absent = [n for n in signatures[0] if not any(name.endswith(f".{n}") for name in names)]
    return (absent or list(signatures[0]))[0]


def _examples(tables: Tables) -> str:
    names = [name for table in tables.values() for name in table]
    if not names:
        return "It has no tensors at all"
    first = ", ".join(printable(name) for name in names[:3])
    return f"It has {first}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_shards(source: object) -> str:
    found = _SHARD.search(str(source))
    return f"; it is one of {int(found.group(1))} shards: name their index" if found else ""


def _is_unused(name: str, unused: Collection[str]) -> bool:
    return name.endswith(_BOOKKEEPING) or name.startswith(tuple(unused))


def _meaning(name: str, own: Collection[str]) -> str:
    block = re.match(r"(?:.*\.)?(?:blocks|resblocks|layers?|transformer)\.\d+\.", name)
    if block and not any(other.startswith(block.group()) for other in own):
        return (
            ": it has more blocks than the model. Set the model's depth to the file's, and name "
            "the blocks to use in encoder.layers"
        )
    return next((f" ({what})" for pattern, what in _MEANINGS if re.search(pattern, name)), "")


def _check_values(source: object, name: str, found: Tensor, wanted: Tensor) -> None:
    check_plain(source, name, found)
    if found.is_complex() or found.is_floating_point() != wanted.is_floating_point():
        raise CheckpointError(
            f"{source}: {printable(name)} is of type {_type(found)}, expected {_type(wanted)}"
        )
    check_finite(source, name, found)


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")

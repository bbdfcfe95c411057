"""Foreign weights: one reader for every file that somebody else wrote, and one way into a module.

The tensors of a model are found by names that its layout must have (a *signature*), under whatever
prefix a training script, a wrapper or a larger model put before them. What a file has for a model is
either loaded, or known to be unused, or refused. How files are read is in ``weight_files``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weight_files import AVERAGED, Tables, opened

_log = logging.getLogger(__name__)

#: Names that a layout must have; the first is what messages call missing.
Signature = Sequence[str]

#: Shapes of tensors by name.
Shapes = Mapping[str, tuple[int, ...]]

#: ``weights_key`` of what stands at a file's top level.
TOP = "."

#: Narrower ones mean something only with the scales that they were packed with.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

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
        return ".".join(word for word in (self.table, self.prefix.rstrip(".")) if word) or TOP


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
        tensors = {
            name: get()
            for name, get in tables[chosen.table].items()
            if name.startswith(chosen.prefix) and not (inner and name.startswith(inner))
        }
    for name, value in tensors.items():
        check_plain(printable(str(path)), name, value)
    return _unwrapped({name.removeprefix(chosen.prefix): v for name, v in tensors.items()})


def holds(path: Path, signatures: Sequence[Signature]) -> bool:
    """Whether a file has weights of a model of one of these layouts, under any prefix.

    Args:
        path: see ``read_weights``.
        signatures: names that the model's layouts have, one tuple per layout.

    Raises:
        CheckpointError: if the file is missing, damaged or of another kind.
    """
    with opened(path) as tables:
        return next(_sets(tables, signatures), None) is not None


def load_whole(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: object,
    unused: Collection[str] = (),
    called: Mapping[str, str] | None = None,
) -> None:
    """Load somebody else's state whole: everything the module has, and nothing left over.

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
    kept = {name: value for name, value in state.items() if name in own}
    check_architecture(source, shapes(own), shapes(kept), called=names)
    left = [n for n in state if n not in own and not _is_unused(n, unused)]
    if left:
        example = printable(names.get(left[0], left[0]))
        raise CheckpointError(
            f"{source} has {example}{and_more(left)}, which this model has no place for"
            f"{_meaning(left[0], own)}"
        )
    for name, value in own.items():
        _check_values(source, names.get(name, name), kept[name], value)
    module.load_state_dict(kept)


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of tensors by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def check_architecture(
    source: object, own: Shapes, there: Shapes, *, called: Mapping[str, str] | None = None
) -> None:
    """Refuse tensors of other names or shapes than a model's.

    Args:
        source: what messages call them.
        own: shapes of the model's, by name.
        there: shapes of the others.
        called: the model's names → those that messages use, where they differ.

    Raises:
        CheckpointError: if there are any; it counts them, and names one.
    """
    names = called or {}
    missing, extra = sorted(own.keys() - there.keys()), sorted(there.keys() - own.keys())
    wrong = sorted(name for name in own.keys() & there.keys() if own[name] != there[name])
    if wrong:
        first = wrong[0]
        example = f"{names.get(first, first)} is {there[first]} there and {own[first]} here"
    elif missing:
        example = f"{names.get(missing[0], missing[0])} is missing{_of_shards(source)}"
    elif extra:
        example = f"{printable(extra[0])} is unknown"
    else:
        return
    kinds = (("missing", missing), ("unknown", extra), ("of another shape", wrong))
    counts = ", ".join(f"{len(those)} tensors {kind}" for kind, those in kinds if those)
    raise CheckpointError(f"{source} holds weights of another architecture: {counts} ({example})")


def check_plain(source: object, name: str, value: Tensor) -> None:
    """Refuse what is no plain tensor of numbers: sparse, quantised, packed or without values.

    Raises:
        CheckpointError: if it is none; the tensor is named.
    """
    packed = value.is_floating_point() and value.dtype not in _FLOATS
    strange = value.layout is not torch.strided or value.is_quantized or value.is_meta
    if packed or strange:
        kinds = {"sparse": value.layout is not torch.strided, "without values": value.is_meta}
        why = next((kind for kind, is_so in kinds.items() if is_so), "quantised")
        raise CheckpointError(
            f"{source}: {printable(name)} is of type {_type(value)}, {why}, and not a plain tensor "
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


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without the words that wrappers put into names; as it is where two would be one."""
    bare = {_without_wrappers(name): value for name, value in state.items()}
    return bare if len(bare) == len(state) else state


def _without_wrappers(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in _WRAPPERS)


def _sets(tables: Tables, signatures: Sequence[Signature]) -> Iterator[_Set]:
    seen = set()
    for place, table in tables.items():
        for first, *others in signatures:
            for name in table:
                prefix = _prefix(name, first)
                if prefix is None:
                    continue
                candidate = _Set(place, prefix)
                if candidate not in seen and _has(table, prefix, others):
                    seen.add(candidate)
                    yield candidate


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
    labels = ", ".join(each.label for each in sets)
    fitting = [s for s in sets if not key or s.label == key or s.label.startswith(f"{key}.")]
    if not fitting:
        raise CheckpointError(
            f"{printable(str(path))} has no weights of this model under {key!r} (weights_key); it "
            f"has them under {printable(labels)}"
        )
    chosen, *others = sorted(fitting, key=lambda each: not AVERAGED.search(each.label))
    if others:
        kind = ", the averaged ones" if AVERAGED.search(chosen.label) else ", the first"
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
    shard = _SHARD.search(str(source))
    return f"; it is one of {int(shard.group(1))} shards: name their index" if shard else ""


def and_more(names: Sequence[str]) -> str:
    """How many names there are besides the first, for a message that names that one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


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


def _check_values(source: object, name: str, value: Tensor, wanted: Tensor) -> None:
    check_plain(source, name, value)
    if value.is_complex() or value.is_floating_point() != wanted.is_floating_point():
        raise CheckpointError(
            f"{source}: {printable(name)} is of type {_type(value)}, expected {_type(wanted)}"
        )
    check_finite(source, name, value)


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")

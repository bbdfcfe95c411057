"""A tokenizer's folder: ``config.json`` and ``model.safetensors``, from a model and back to one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rpiae.core.config.recipe import ROLES
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.build import build_tokenizer, resolved_parts
from rpiae.core.model.places import Word, named_place, unknown_word
from rpiae.core.model.resolve import ResolvedTokenizer
from rpiae.core.model.saved import FORMAT, GENERATOR, TOKENIZER, SavedModel, open_model, write_model
from rpiae.core.model.saved_parts import FLOATS, fitting, read_parts, written_parts
from rpiae.core.model.saved_tensors import TensorFacts
from rpiae.core.model.state import load_state, written_state
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weights import check_architecture, shapes


def save_tokenizer(
    model: RPiAE, folder: str | os.PathLike[str], *, rounded_to: torch.dtype | None = None
) -> Path:
    """Write ``config.json`` and ``model.safetensors``, which know each other by digest.

    A process that is killed meanwhile leaves the old tokenizer or the new one.

    Args:
        model: the tokenizer.
        folder: where to.
        rounded_to: writes its parameters in a narrower dtype, ``torch.float16`` or ``torch.bfloat16``, to
            half the bytes. They come back in fp32, rounded.

    Raises:
        UsageError: if the tokenizer was put together without configs, has other weights than they give, or
            its values are too large for the narrower dtype.
        CheckpointError: if the folder cannot be written.
    """
    if model.config is None:
        raise UsageError(
            "this tokenizer was put together by hand and has no config to save: make it with "
            "rpiae.build, or pass config"
        )
    model = _as_configured(model, model.config)
    target = Path(folder)
    tree = _config_of(model)
    if rounded_to is not None:
        tree[_ROUNDED] = True
    write_model(target, tree, written_state(model, rounded_to))
    return target


def load_tokenizer(folder: Word, *, revision: str = "", subfolder: str = "") -> RPiAE:
    """Load a saved tokenizer, on CPU and in eval mode; running no code from it.

    Args:
        folder: a tokenizer's folder, or a run's (its ``tokenizer/`` is taken); a model that ships with
            rpiae; or ``user/name`` on the hub. See ``named_place``, of which the rest is too.

    Raises:
        CheckpointError: if it is missing, damaged, of another format, or needs a plugin that is not
            installed.
        FetchError: if it is on the hub and cannot be had.
        UsageError: if revision or subfolder make no sense for it.
    """
    place = tokenizer_folder(folder, revision=revision, subfolder=subfolder)
    return load_saved(open_model(place)).eval()


def tokenizer_folder(folder: Word, *, revision: str = "", subfolder: str = "") -> Path:
    """The folder that holds ``config.json``: the named one or its ``tokenizer/``; see
    ``load_tokenizer``.

    Raises:
        CheckpointError: if there is none.
        FetchError: if it is on the hub and cannot be had.
        UsageError: if revision or subfolder make no sense for it.
    """
    path = named_place(folder, TOKENIZER, revision=revision, subfolder=subfolder)
    for candidate in (path, path / "tokenizer"):
        if os.path.lexists(candidate / "config.json"):
            return candidate
    if os.path.isfile(path):
        raise CheckpointError(f"{path} is a file: name the folder of a run or tokenizer")
    what = "has no finished tokenizer yet" if os.path.isdir(path) else "does not exist"
    if os.path.lexists(path / GENERATOR / "config.json"):
        what = f"holds a generator and no tokenizer{_whose(path / GENERATOR)}"
    raise CheckpointError(
        f"{path} {what}: expected config.json and model.safetensors there or in {path / 'tokenizer'}"
        f"{unknown_word(folder)}"
    )


def _whose(generator: Path) -> str:
    """Which tokenizer a generator has, for messages; nothing where its folder does not say so."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        config = json.loads((generator / "config.json").read_text(encoding="utf-8"))
        return f", its own being {printable(str(config['latents']['tokenizer']))}"
    return ""


def load_saved(saved: SavedModel) -> RPiAE:
    """A saved tokenizer as a model on CPU, in the dtypes of its file.

    What the file's header says is compared with the model's shapes before any memory is taken.

    Raises:
        CheckpointError: if a part's plugin is missing, its config does not fit, or the file holds
            other tensors than such a model has.
    """
    source = str(saved.folder)
    resolved, trained_size = _saved_parts(saved.config, source)
    with fitting(source):
        shapes = build_tokenizer(resolved, device="meta", trained_size=trained_size)
    _check_header(shapes, resolved, saved.tensors, source)
    with fitting(source):
        model = build_tokenizer(resolved, trained_size=trained_size)
    rounded = saved.config.get(_ROUNDED) is True
    if not rounded:
        for role, dtype in _dtypes(shapes, saved.tensors, source).items():
            model.roles[role].to(dtype)
    state = saved.read()
    _check_norms(state, source)
    for name in _NORMS:
        if name in state:
            model.register_buffer(name, state[name])
    load_state(model, state, source=source, exact=not rounded)
    return model


def _as_configured(model: RPiAE, config: ResolvedTokenizer) -> RPiAE:
    """The tokenizer itself, out of ``torch.compile``.

    Raises:
        UsageError: if it has other weights than its config gives, so that it could not be loaded.
    """
    model = getattr(model, "_orig_mod", model)
    wanted = shapes(build_tokenizer(config, device="meta").state_dict())
    found = shapes(model.state_dict())
    wrong = [n for n in {**wanted, **found} if n not in _NORMS and wanted.get(n) != found.get(n)]
    if wrong:
        raise UsageError(
            "this tokenizer has other weights than its parts' configs give, so it could not be loaded: "
            f"{len(wrong)} differ, such as {wrong[0]}. If a part was wrapped or parametrized, undo that "
            "first; model.encoder.compile() compiles a part in place"
        )
    return model


def _config_of(model: RPiAE) -> dict[str, Any]:
    assert model.config is not None
    parts = {
        "encoder": model.config.encoder,
        "bridge": model.config.bridge,
        "decoder": model.config.decoder,
    }
    return {"format": FORMAT, **written_parts(parts), "trained_size": model.trained_size}


#: Optional buffers of a tokenizer, and what they are measured over.
_NORMS = {
    "feature_mean": "feature_norm", "feature_var": "feature_norm",
    "latent_mean": "latent_norm", "latent_std": "latent_norm",
}  # fmt: skip


#: Entry of a ``config.json`` whose parameters were rounded to be written, and are computed with in fp32.
_ROUNDED = "rounded"

#: Side of training crops in pixels, at most.
_LARGEST_SIZE = 1 << 16


def _saved_parts(saved: Mapping[str, Any], source: str) -> tuple[ResolvedTokenizer, int]:
    """The parts of a saved config, and the side of its training crops."""
    parts = read_parts(saved, {role: f"{role}s" for role in ROLES}, source)
    size = saved.get("trained_size", 0)
    if type(size) is not int or not 0 <= size <= _LARGEST_SIZE:
        raise CheckpointError(
            f"{source}: config.json: trained_size is {size!r:.40}, not a number of pixels from 0 to "
            f"{_LARGEST_SIZE}"
        )
    with fitting(source):
        return resolved_parts(*(parts[role] for role in ROLES)), size


def _check_header(
    model: RPiAE, resolved: ResolvedTokenizer, tensors: Mapping[str, TensorFacts], source: str
) -> None:
    """Refuse a file whose tensors are not those of a model without memory."""
    there = {name: facts.shape for name, facts in tensors.items() if name not in _NORMS}
    check_architecture(source, shapes(model.state_dict()), there)
    for name in sorted(_NORMS.keys() & tensors.keys()):
        twin = next(n for n, norm in _NORMS.items() if norm == _NORMS[name] and n != name)
        dtype, shape = tensors[name]
        if _NORMS[name] == "latent_norm":
            wanted, fits = f"({resolved.bridge_facts.latent_channels},)", len(shape) == 1
            fits = fits and shape[0] == resolved.bridge_facts.latent_channels
        else:
            width = resolved.encoder_facts.width
            wanted, fits = f"({width}, h, w)", len(shape) == 3 and shape[0] == width
        if not fits or dtype not in FLOATS or 0 in shape:
            raise CheckpointError(f"{source}: {name} is {dtype} {shape}, not of floats {wanted}")
        if twin not in tensors or tensors[twin].shape != shape:
            raise CheckpointError(
                f"{source}: {name} is {shape} and there is no {twin} of that shape"
            )


def _dtypes(
    model: RPiAE, tensors: Mapping[str, TensorFacts], source: str
) -> dict[str, torch.dtype]:
    """Roles that were saved in another floating dtype than they are built in, with that dtype."""
    chosen = {}
    for role, part in model.roles.items():
        floats = {
            f"{role}.{n}": t.dtype for n, t in part.state_dict().items() if t.is_floating_point()
        }
        dtypes = {name: tensors[name].dtype for name in floats}
        if all(FLOATS.get(dtype) == floats[name] for name, dtype in dtypes.items()):
            continue
        first = next(iter(dtypes.values()))
        for name, dtype in dtypes.items():
            if dtype not in FLOATS:
                raise CheckpointError(f"{source}: {name} is {dtype}, which is no dtype of weights")
            if dtype != first:
                raise CheckpointError(
                    f"{source}: {name} is {dtype} and others of the {role} are {first}: a part has "
                    "one dtype"
                )
        chosen[role] = FLOATS[first]
    return chosen


def _check_norms(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse statistics that features or latents cannot be normalised with."""
    for name in sorted(_NORMS.keys() & state.keys()):
        tensor = state[name]
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds numbers that are not finite")
        if (name == "latent_std" and tensor.min() <= 0) or (
            name == "feature_var" and tensor.min() < 0
        ):
            raise CheckpointError(f"{source}: {name} is not positive ({tensor.min().item():g})")

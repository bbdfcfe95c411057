"""Saved models on disk: two files that fit each other at any moment, and are what was written.

``config.json`` holds the sha256 of ``model.safetensors`` and its own. A folder is replaced in place:
both files are written whole under other names, the weights are renamed, then the config. A process
that is killed between the two leaves new weights beside a new config under its other name, and a
reader, which knows by the digest which config the weights are of, takes that one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.model.saved_tensors import (
    WEIGHTS_FILE,
    TensorFacts,
    is_in_shards,
    read_headers,
    read_tensors,
)
from rpiae.core.runtime.files import file_digest, open_regular, replace_durably, sync, until_whole
from rpiae.core.runtime.names import printable

FORMAT = 1

CONFIG_FILE = "config.json"
#: What was measured of a model; it goes when the model is replaced.
_RESULTS = ("evaluation.json", "pictures")

#: What a model's folder may hold and still be replaced: its files, and results about it.
REPLACEABLE = frozenset({CONFIG_FILE, WEIGHTS_FILE, *_RESULTS}) | {
    f"{name}.part" for name in (CONFIG_FILE, WEIGHTS_FILE)
}

#: What a saved model can be; the entry of ``config.json`` that says it.
TOKENIZER, GENERATOR = "tokenizer", "generator"
_KIND = "kind"

#: The entry that every ``config.json`` of ours has.
_FORMAT = "format"

#: Entries of ``config.json`` that hold digests.
_OWN, _WEIGHTS = "sha256", "weights_sha256"

#: Bytes of a ``config.json`` at most.
_LIMIT = 1 << 24

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class SavedModel:
    """A saved tokenizer or generator, its tensors not read yet.

    Attributes:
        folder: where it is.
        config: its ``config.json``.
        tensors: what its weights hold, by name.
        files: where each of them is.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorFacts]
    files: Mapping[str, Path]

    def read(self) -> dict[str, Tensor]:
        """All tensors.

        Raises:
            CheckpointError: if they cannot be read.
        """
        return read_tensors(self.files)


def write_model(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a model's files, or replace them.

    Args:
        folder: where to; made if it is not there.
        config: what ``config.json`` holds.
        state: the tensors.

    Raises:
        CheckpointError: if the folder holds other things or a model of another kind, or cannot be
            written; what was there before stays.
    """
    config_file, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    try:
        if folder.exists() and not _replaceable(folder):
            raise CheckpointError(
                f"{folder} holds other things than a {kind_of(config)} and is left alone: name a new "
                "folder"
            )
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        _finish(folder)
        _check_kind(folder, kind_of(config))
        try:
            save_file(dict(state), until_whole(weights), metadata={"format": "pt"})
            until_whole(weights).chmod(0o644)  # safetensors lets its owner alone read it
            tree = {**config, _WEIGHTS: file_digest(until_whole(weights))}
            tree[_OWN] = _own_digest(tree)
            until_whole(config_file).write_text(json.dumps(tree, indent=2) + "\n", "utf-8")
            sync(until_whole(config_file))  # before the weights: from then on it is needed
            replace_durably(until_whole(weights), weights)
            replace_durably(until_whole(config_file), config_file)
        finally:
            if until_whole(weights).exists():
                until_whole(config_file).unlink(missing_ok=True)
                until_whole(weights).unlink()
                if is_new:
                    folder.rmdir()
        _clear(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {folder}: {reason}") from None


def kind_of(config: Mapping[str, Any]) -> str:
    """What a ``config.json`` is of; tokenizers do not say it."""
    return str(config.get(_KIND, TOKENIZER))


def open_model(folder: Path, kind: str = TOKENIZER) -> SavedModel:
    """A saved model, its digests checked and its tensors not read yet.

    Files of earlier versions have no digests, which is logged; weights that somebody spread over
    several files have none that could be compared, which is logged too.

    Args:
        folder: where it is.
        kind: what it has to be, ``tokenizer`` or ``generator``.

    Raises:
        CheckpointError: if it is damaged, of another kind or format.
    """
    weights = folder / WEIGHTS_FILE
    config = _read_config(folder / CONFIG_FILE)
    in_shards = is_in_shards(folder)
    if not in_shards:
        config = _config_of(weights, config)
    _check_config(config, kind, folder)
    if _WEIGHTS not in config:
        logger.warning(
            "%s is of an earlier version and has no digests to check it by: save it again", folder
        )
    elif in_shards:
        logger.warning(
            "%s has its weights in shards, and %s a digest of one file: names, shapes and lengths "
            "are checked, values are not", folder, CONFIG_FILE,
        )  # fmt: skip
    tensors, files = read_headers(folder)
    return SavedModel(folder=folder, config=config, tensors=tensors, files=files)


def check_config(folder: Path, kind: str = "") -> None:
    """Refuse a folder by its ``config.json`` alone.

    Args:
        folder: where it is.
        kind: what the model has to be; any where it is empty.

    Raises:
        CheckpointError: if it is damaged, of somebody else's model, or of another kind or format.
    """
    config = _read_config(folder / CONFIG_FILE)
    _check_config(config, kind or kind_of(config), folder)


def _check_config(config: Mapping[str, Any], kind: str, folder: Path) -> None:
    if _FORMAT not in config:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} is not of a model that rpiae saved. `rpiae import` opens checkpoints "
            "of others"
        )
    if kind_of(config) != kind:
        raise CheckpointError(
            f"{folder} holds a {printable(kind_of(config))[:40]}, and a {kind} is wanted: name the "
            f"folder of a {kind} or of its run"
        )
    version = config[_FORMAT]
    if version != FORMAT:
        raise CheckpointError(
            f"{folder} has {kind} format {version!r}, this rpiae reads format {FORMAT}"
        )


def _config_of(weights: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config that weights are of: the given one, or one that is about to take its place."""
    try:
        digest = file_digest(weights)
    except OSError as error:
        raise CheckpointError(f"{weights} cannot be read: {error.strerror}") from None
    if config.get(_WEIGHTS, digest) == digest:
        return config
    path = weights.with_name(CONFIG_FILE)
    for candidate in (until_whole(path), path):  # the second: somebody replaces them just now
        with contextlib.suppress(CheckpointError):
            other = _read_config(candidate)
            if other.get(_WEIGHTS) == digest:
                return other
    raise CheckpointError(
        f"{weights} is damaged: its sha256 is not the one that {CONFIG_FILE} has of it"
    )


def _read_config(path: Path) -> dict[str, Any]:
    """A ``config.json`` that is what was written."""
    try:
        with open_regular(path) as file:
            content = file.read(_LIMIT + 1)
        if len(content) > _LIMIT:
            raise CheckpointError(f"{path} is larger than any {CONFIG_FILE}")
        tree = json.loads(content)
        digest = _own_digest(tree) if isinstance(tree, dict) else ""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds no table")
    if (_OWN in tree) != (_WEIGHTS in tree) or tree.get(_OWN, digest) != digest:
        raise CheckpointError(
            f"{path} is damaged or was edited: its sha256 is not that of its content. Save the "
            f"model again, or take {_OWN} and {_WEIGHTS} out of it to load it unchecked"
        )
    return tree


def _own_digest(tree: Mapping[str, Any]) -> str:
    """sha256 of a config without the entry that holds it."""
    rest = {name: value for name, value in tree.items() if name != _OWN}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _replaceable(folder: Path) -> bool:
    """Whether a folder is empty, or holds a saved model and nothing but what was measured of it."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= REPLACEABLE


def _check_kind(folder: Path, kind: str) -> None:
    """What is there, if anything, is a saved model of this kind. Its weights may be damaged."""
    path = folder / CONFIG_FILE
    if not path.exists() and not (folder / WEIGHTS_FILE).exists():
        return  # a first save that was cut off, or results alone
    left_alone = f"{folder} is left alone: name a new folder for the {kind}"
    try:
        config = _read_config(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {left_alone}") from None
    if _FORMAT not in config:
        raise CheckpointError(f"{path} is not of a model that rpiae saved. {left_alone}")
    if kind_of(config) != kind:
        raise CheckpointError(
            f"{folder} holds a {printable(kind_of(config))[:40]}, which a {kind} does not replace. "
            f"{left_alone}"
        )


def _finish(folder: Path) -> None:
    """End a replacement that was cut off between its two files."""
    config_file, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    unfinished = until_whole(config_file)
    if unfinished.exists() and weights.exists():
        with contextlib.suppress(CheckpointError):
            if _read_config(unfinished).get(_WEIGHTS) == file_digest(weights):
                replace_durably(unfinished, config_file)


def _clear(folder: Path) -> None:
    """Remove what was measured of the model that was replaced, and what earlier versions left
    beside it when they were killed."""
    for name in _RESULTS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    left = re.compile(rf"\.{re.escape(folder.name)}-[a-z0-9_]{{8}}(-replaced)?")
    for path in folder.parent.iterdir():
        if not left.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        if set(os.listdir(path)) <= REPLACEABLE:
            shutil.rmtree(path, ignore_errors=True)

"""Files of other projects as models of ours, whatever they are: the layout is recognised.

Known are the official tokenizers (RPiAE of any stage, decoders of RAE), the official generators, and
folders of diffusers' ``AutoencoderRAE``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attrs import fields_dict, frozen

from rpiae.core.errors import CheckpointError, FetchError, UsageError
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.core.model.places import hub_place
from rpiae.core.model.saved import CONFIG_FILE, GENERATOR, TOKENIZER
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.download import fetch_hub
from rpiae.core.runtime.files import read_json
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weight_files import expanded, named_file
from rpiae.core.runtime.weights import Signature, holds
from rpiae.interop.reference.facts import Told
from rpiae.interop.reference.generators import import_generator
from rpiae.interop.reference.lightningdit import WHAT as A_GENERATOR
from rpiae.interop.reference.lightningdit import Untold
from rpiae.interop.reference.tokenizers import DECODER_ALONE, WHOLE, read_tokenizer
from rpiae.interop.reference.tokenizers import WHAT as A_TOKENIZER
from rpiae.interop.reference.transformers import SIGNATURES as ENCODERS

#: Any of these shows a generator of the reference; a file with one key renamed has the others.
_GENERATORS: tuple[Signature, ...] = (
    ("t_embedder.mlp.0.weight", "final_layer.linear.weight"),
    ("x_embedder.proj.weight", "y_embedder.embedding_table.weight"),
)

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".index.json")

#: What the project's repository on the hub has.
_TOKENIZER_FILE, _GENERATOR_FILE = "rpiae_stage3_1_c64_ema.pt", "LightningDiT/ep-0000800.pt"

#: What diffusers' folders have.
_DIFFUSERS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

#: What is told of each layout, and of sources in general.
_OF_ALL = {"file", "revision"}
_OF_GENERATORS = {"tokenizer", "num_heads", "head_depth", "num_classes", "weights_key"}
_OF_TOKENIZERS = {
    "encoder", "encoder_weights", "stats", "configs", "num_heads", "decoder_heads", "eps", "mean",
    "std", "weights_key",
}  # fmt: skip

#: Options of ``rpiae import`` that are not called as their fields.
_CALLED = {"configs": "config", "num_heads": "heads", "num_classes": "classes"}


@frozen(kw_only=True)
class Imported:
    """A model that was read from somebody else's file.

    Attributes:
        layout: what the file is, in words.
        model: a tokenizer, or a generator.
        read: the files that were read.
        notes: sentences on what was assumed or left out.
    """

    layout: str
    model: RPiAE | LatentGenerator
    read: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``tokenizer`` or ``generator``."""
        return TOKENIZER if isinstance(self.model, RPiAE) else GENERATOR


def import_model(source: str | os.PathLike[str], *, told: Told | None = None) -> Imported:
    """A model of another project, whose layout is recognised.

    Args:
        source: a file, a folder, or a repository of the Hugging Face hub: ``owner/name``, also with
            ``@revision`` and ``:folder``.
        told: what the user says beside.

    Raises:
        CheckpointError: if a file is damaged, of no known layout, or not whole.
        UsageError: if something is left open, which is asked for at once, or what is told does not
            fit.
        FetchError: if a repository cannot be had.
    """
    told = told or Told()
    path = _found(os.fspath(source), told)
    if path.is_dir():
        from rpiae.interop.diffusers.autoencoder_rae import is_autoencoder_rae, read_autoencoder_rae

        if is_autoencoder_rae(path):
            layout = "a folder of diffusers' AutoencoderRAE"
            _check_told(path, layout, told, _OF_ALL)
            return Imported(layout=layout, model=read_autoencoder_rae(path), read=(_shown(path),))
        path = _file_in(path, told)
    path = named_file(str(path), owner="what is imported")
    if holds(path, _GENERATORS):
        return _generator(path, told)
    if not holds(path, (*WHOLE, *DECODER_ALONE)):
        raise _unknown(path)
    _check_told(path, A_TOKENIZER, told, _OF_TOKENIZERS | _OF_ALL)
    model, facts = read_tokenizer(path, told)
    return Imported(
        layout=A_TOKENIZER, model=model, read=tuple(facts.read), notes=tuple(facts.notes)
    )


def _generator(path: Path, told: Told) -> Imported:
    if not told.tokenizer:
        raise UsageError(
            f"{_shown(path)} is {A_GENERATOR}: name the tokenizer that it was trained with, with "
            "--tokenizer (Python: tokenizer)"
        )
    _check_told(path, A_GENERATOR, told, _OF_GENERATORS | _OF_ALL)
    untold = Untold(
        num_heads=told.num_heads, head_depth=told.head_depth, num_classes=told.num_classes
    )
    model = import_generator(
        path, tokenizer=told.tokenizer, weights_key=told.weights_key, told=untold
    )
    return Imported(layout=A_GENERATOR, model=model, read=(_shown(path),))


def _check_told(path: Path, what: str, told: Told, known: Iterable[str]) -> None:
    """Refuse what would have no effect."""
    empty = Told()
    idle = [
        f"--{_CALLED.get(name, name).replace('_', '-')}"
        for name in fields_dict(Told)
        if name not in known and getattr(told, name) != getattr(empty, name)
    ]
    if idle:
        raise UsageError(
            f"{_shown(path)} is {what}, to which {', '.join(idle)} does not belong: leave it out"
        )


def _unknown(path: Path) -> CheckpointError:
    if holds(path, ENCODERS):
        return CheckpointError(
            f"{_shown(path)} holds an encoder and no decoder: name its folder with --encoder, beside the "
            "file of a decoder"
        )
    return CheckpointError(
        f"{_shown(path)} is neither {A_TOKENIZER} ({DECODER_ALONE[0][0]} is missing, under any prefix) nor "
        f"{A_GENERATOR} ({_GENERATORS[0][0]} is missing)"
    )


def _found(source: str, told: Told) -> Path:
    """A file or folder of this machine, downloaded where it is of the hub."""
    path = expanded(source)
    place = None if source.endswith(_SUFFIXES) else hub_place(source)
    if place is None:
        if told.revision:
            raise UsageError(
                f"--revision is of repositories of the hub, and {printable(source)} is none"
            )
        if not os.path.lexists(path):
            raise CheckpointError(f"there is no file or folder {printable(source)}")
        return path
    wanted = _GENERATOR_FILE if told.tokenizer else _TOKENIZER_FILE
    files = (told.file,) if told.file else (wanted, *(() if told.tokenizer else _DIFFUSERS_FILES))
    files = tuple("/".join(part for part in (place.subfolder, name) if part) for name in files)
    revision = told.revision or place.revision
    try:
        file = fetch_hub(place.repository, revision, files)
        if file.name in _DIFFUSERS_FILES and not told.file:
            config = f"{place.subfolder}/{CONFIG_FILE}" if place.subfolder else CONFIG_FILE
            return fetch_hub(place.repository, revision, [config]).parent
    except FetchError as error:
        raise FetchError(
            f"there is no file or folder {printable(source)}, and {', '.join(files)} of the hub's "
            f"repository {place.repository} (revision {printable(revision)}) cannot be had: {error}. Ways out: "
            "name another file in it with --file; or download it where there is a network, and name the file"
        ) from None
    return file


def _file_in(folder: Path, told: Told) -> Path:
    """The one file in a folder that can be imported, or the one that is named."""
    if told.file:
        return folder / told.file
    if _is_ours(folder):
        raise UsageError(
            f"{_shown(folder)} holds a model of rpiae already: there is nothing to import"
        )
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(_SUFFIXES)]
    known = (*WHOLE, *DECODER_ALONE, *_GENERATORS)
    fitting = [path for path in files if holds(path, known)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(
            f"{_shown(folder)} has several files that can be imported: name one of "
            f"{', '.join(printable(path.name) for path in fitting)} with --file"
        )
    names = ", ".join(printable(path.name) for path in files[:8])
    has = f"{names}, of no known layout" if files else "no file of weights"
    raise CheckpointError(
        f"{_shown(folder)} cannot be imported: it has no config.json of diffusers' AutoencoderRAE, and "
        f"{has}. Expected is a file of the reference ({', '.join(_SUFFIXES[:-1])})"
    )


def _is_ours(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG_FILE)
    except CheckpointError:
        return False
    return isinstance(config, dict) and {"format", "sources"} <= config.keys()


def _shown(path: Path) -> str:
    return printable(str(path))

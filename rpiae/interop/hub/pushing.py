"""What a model's repository on the hub holds: its files, its run's config, its numbers and its card.

A tokenizer lies at the top, as in its own folder; a generator and its tokenizer lie in folders of these
names, as in a run's. Nothing that is written holds a path of this machine.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from attrs import evolve, frozen

from rpiae.core.config.parts import BridgeConfig, EncoderConfig, PartConfig
from rpiae.core.config.recipe import ROLES
from rpiae.core.config.tree import dump_toml, read_toml
from rpiae.core.errors import CheckpointError, RunError, UsageError
from rpiae.core.model.folders import load_saved, save_tokenizer, tokenizer_folder
from rpiae.core.model.generator_folders import load_generator_model, save_generator
from rpiae.core.model.places import Word, hub_place, named_place
from rpiae.core.model.resolve import part_config
from rpiae.core.model.saved import (
    GENERATOR,
    TOKENIZER,
    SavedModel,
    open_model,
    write_model,
)
from rpiae.core.model.saved_parts import read_parts
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import read_json, until_whole, write_text
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.records import WEIGHTS, add_evaluation, read_evaluations
from rpiae.evaluation.saved_generation import is_generation
from rpiae.evaluation.subjects import results_folder
from rpiae.interop.hub.card import Described, model_card, parameters
from rpiae.interop.hub.paths import without_paths
from rpiae.latents.encoding import tokenizer_digest
from rpiae.sampling.loaded import LoadedGenerator
from rpiae.sampling.plan import generator_digest
from rpiae.sampling.resolving import generator_named, load_finite, own_tokenizer, tokenizer_of

CARD_FILE = "README.md"
RUN_FILE = "config.toml"

#: What can be pushed: a model, or a word for a folder with one, or for its run.
Source = RPiAE | LoadedGenerator | Word

#: Fields of a run's config that name folders.
_FOLDERS = ("out", "init", "latents", "tokenizer")

#: Entries of a model's ``config.json`` that are made anew with its files.
_DIGESTS = ("sha256", "weights_sha256")


@frozen(kw_only=True)
class _Opened:
    """A model that is whole, and what lies beside it.

    Attributes:
        kind: ``tokenizer`` or ``generator``.
        models: its saved models, by their folders in the repository.
        fingerprints: sha256 of it, by the name in evaluations.
        results: the folder of its run, or its own.
        measured: where its numbers may be.
        label_names: of a generator's classes.
    """

    kind: str
    models: Mapping[str, SavedModel]
    fingerprints: Mapping[str, str]
    results: Path
    measured: tuple[Path, ...] = ()
    label_names: tuple[str, ...] = ()


def write_repository(source: Source, folder: Path, *, repository: str) -> list[str]:
    """Write all that is pushed into a new folder.

    Args:
        source: a model; or the word for a tokenizer, a generator or a run of either.
        folder: where to; it is there whole or not at all.
        repository: ``user/name``, for the card.

    Returns:
        The names of its files.

    Raises:
        UsageError: if the folder holds anything, or a model has no config to save.
        CheckpointError: if there is no model, or it is damaged or not finite.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty and is left alone: name a new folder")
    with tempfile.TemporaryDirectory(prefix="rpiae-push-") as name:
        made = Path(name, "made")
        _write(_opened(source, Path(name)), made, repository)
        unfinished = until_whole(folder)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(made, unfinished)
            if folder.exists():
                folder.rmdir()
            unfinished.rename(folder)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise RunError(f"cannot write {folder}: {error.strerror or error}") from None
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _opened(source: Source, spare: Path) -> _Opened:
    """A source as saved models, loaded once to see that they are whole.

    Args:
        source: as of ``write_repository``.
        spare: where models that are in memory alone are saved.
    """
    if isinstance(source, RPiAE):
        return _tokenizer(save_tokenizer(source, spare / TOKENIZER), spare)
    if isinstance(source, LoadedGenerator):
        save_tokenizer(source.tokenizer, spare / TOKENIZER)
        return _generator(save_generator(source.model, spare / GENERATOR), spare)
    place = named_place(source)
    if is_generation(place):
        opened = _generator(generator_named(place), place)
    else:
        opened = _tokenizer(tokenizer_folder(place), place)
    around = results_folder(place)
    own = place if (place / RUN_FILE).is_file() else around
    return evolve(opened, results=own, measured=tuple(dict.fromkeys((own, around))))


def _tokenizer(folder: Path, results: Path) -> _Opened:
    saved = open_model(folder)
    model = load_saved(saved)
    _check_finite(model, folder)
    return _Opened(
        kind=TOKENIZER, models={"": saved}, results=results,
        fingerprints={"tokenizer_sha256": tokenizer_digest(model)},
    )  # fmt: skip


def _generator(folder: Path, results: Path) -> _Opened:
    model = load_finite(folder)
    tokenizer = tokenizer_of(model, folder, None)
    _check_finite(tokenizer, folder)
    saved = open_model(tokenizer_folder(own_tokenizer(model, folder)))
    return _Opened(
        kind=GENERATOR, models={GENERATOR: open_model(folder, GENERATOR), TOKENIZER: saved},
        results=results, label_names=model.facts.label_names,
        fingerprints={
            "generator_sha256": generator_digest(model),
            "tokenizer_sha256": tokenizer_digest(tokenizer),
        },
    )  # fmt: skip


def _check_finite(model: RPiAE, folder: Path) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{folder}: {name} holds values that are not finite")


def _write(opened: _Opened, folder: Path, repository: str) -> None:
    """All files, the card last, which tells of them as they were written."""
    run = _run_of(opened)
    records = _evaluations_of(opened)
    summary = _summary_of(opened)
    fingerprints = dict(opened.fingerprints)
    for below, saved in reversed(
        list(opened.models.items())
    ):  # a generator knows its tokenizer's digest
        config = {n: v for n, v in without_paths(saved.config, run).items() if n not in _DIGESTS}
        if below == GENERATOR:
            config["latents"] = {
                **config["latents"], "tokenizer": TOKENIZER,
                "tokenizer_sha256": fingerprints["tokenizer_sha256"],
            }  # fmt: skip
        write_model(folder / below, config, saved.read())
        written = open_model(folder / below, GENERATOR if below == GENERATOR else TOKENIZER)
        if below == GENERATOR:
            load_generator_model(folder / below)
        else:
            fingerprints["tokenizer_sha256"] = tokenizer_digest(load_saved(written))
    cleaned = [
        {**without_paths(each, run), **{n: fingerprints[n] for n in WEIGHTS if n in each}}
        for each in records
    ]
    for record in cleaned:
        add_evaluation(folder / EVALUATION_FILE, record)
    if run:
        write_text(folder / RUN_FILE, dump_toml(_without_places(run)))
    described = _described(opened, repository)
    described = evolve(
        described, run=_without_places(run), summary=without_paths(summary), evaluations=cleaned
    )
    write_text(folder / CARD_FILE, model_card(described))


def _run_of(opened: _Opened) -> dict[str, Any]:
    """The run's config; empty where it is from none."""
    path = opened.results / RUN_FILE
    return _of_kind(opened, read_toml(path)) if path.is_file() else {}


def _of_kind(opened: _Opened, found: Any) -> dict[str, Any]:
    """What lies in the results' folder; nothing where it is of a generator's run around a tokenizer."""
    is_ours = isinstance(found, dict) and (GENERATOR in found) == (opened.kind == GENERATOR)
    return found if is_ours else {}


def _without_places(run: dict[str, Any]) -> dict[str, Any]:
    """A run's config in which folders of its machine, which are no longer what they were named from,
    are their last names."""
    named = {n: run[n] for n in _FOLDERS if isinstance(run.get(n), str) and not hub_place(run[n])}
    found: dict[str, Any] = without_paths({**run, **{n: Path(v).name for n, v in named.items()}})
    data = found.get("data")
    if isinstance(data, dict) and isinstance(path := data.get("path"), str):
        config = part_config("datasets", run["data"])
        found["data"] = {**data, "path": path if config.repository() else PurePath(path).name}
    return found


def _summary_of(opened: _Opened) -> dict[str, Any]:
    path = opened.results / "summary.json"
    return _of_kind(opened, read_json(path)) if path.is_file() else {}


def _evaluations_of(opened: _Opened) -> list[dict[str, Any]]:
    """What was measured of these weights, oldest first."""
    found: list[dict[str, Any]] = []
    for path in (folder / EVALUATION_FILE for folder in opened.measured):
        try:
            found += map(dict, read_evaluations(path))
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
    return [e for e in found if {n: e[n] for n in WEIGHTS if n in e} == opened.fingerprints]


def _described(opened: _Opened, repository: str) -> Described:
    parts: dict[str, PartConfig] = {}
    counts: dict[str, int] = {}
    sources: set[str] = set()
    facts: list[str] = []
    for below, saved in opened.models.items():
        kind = GENERATOR if below == GENERATOR else TOKENIZER
        families = {GENERATOR: "generators"} if kind == GENERATOR else {r: f"{r}s" for r in ROLES}
        parts |= read_parts(saved.config, families, str(saved.folder))
        counts |= parameters((name, math.prod(t.shape)) for name, t in saved.tensors.items())
        sources |= set(saved.config.get("sources", {}).values())
        facts += _facts(saved, kind, parts)
    return Described(
        kind=opened.kind, repository=repository, parts=parts, parameters=counts,
        sources=sorted(sources), facts=facts, label_names=opened.label_names,
    )  # fmt: skip


def _facts(saved: SavedModel, kind: str, parts: Mapping[str, PartConfig]) -> list[str]:
    """Sizes and statistics, in words."""
    dtypes = ", ".join(sorted({facts.dtype for facts in saved.tensors.values()}))
    held = f"weights of the {kind} in {dtypes}"
    if kind == GENERATOR:
        shape = "×".join(map(str, saved.config["latents"]["shape"]))
        return [held, f"latents {shape}"]
    encoder, bridge = parts["encoder"], parts["bridge"]
    assert isinstance(encoder, EncoderConfig)
    assert isinstance(bridge, BridgeConfig)
    facts, latent = encoder.describe(), bridge.describe()
    patch = facts.output_patch * latent.downsampling
    lines = [
        held,
        f"latents of {latent.latent_channels} channels, one position per {patch}×{patch} pixels",
    ]
    if size := saved.config.get("trained_size"):
        lines.append(f"trained on crops of {size} pixels")
    if "latent_mean" in saved.tensors:
        lines.append("the latents' mean and standard deviation are stored (`latent_norm`)")
    return lines

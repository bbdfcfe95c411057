"""A run from what a user says to what can begin: resolved, planned, checked."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attrs import evolve

from rpiae.core.config.generation import GeneratorRunConfig
from rpiae.core.config.identity import pinned
from rpiae.core.config.parts import parts_of
from rpiae.core.config.recipe import AdversarialConfig, RecipeConfig, RunConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.fetching import Loading, loading_parts, needed
from rpiae.core.model.places import pinned_word
from rpiae.core.model.resolve import ResolvedRun, resolve_run
from rpiae.core.model.saved import TOKENIZER
from rpiae.core.model.stages import AnyRun
from rpiae.core.registry.importing import MAIN, import_hint
from rpiae.core.registry.registry import OWN, registry
from rpiae.core.runtime.processes import Runtime
from rpiae.data.building import built_dataset
from rpiae.evaluation.held_out import METRICS, held_out_metrics
from rpiae.runs.planning import Plan, make_plan
from rpiae.runs.start import brings_pivot, check_initial, initial_parts

R = TypeVar("R", RunConfig, GeneratorRunConfig)

#: The run that nothing was said about; presets' companions come before all but the encoder.
DEFAULTS: Mapping[str, str] = {
    "encoder": "tiny",
    "bridge": "vb64",
    "decoder": "vit-b",
    "recipe": "rpiae",
}


def resolve(
    tree: Tree | None = None,
    *,
    overrides: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    source: str = "the run",
) -> ResolvedRun:
    """Resolve a run with the toolkit's defaults; see ``rpiae.core.model.resolve.resolve_run``.

    Where it fails, what the run requires and is not installed is named too.
    """
    tree = with_pinned(tree or {}, init=TOKENIZER)
    try:
        return resolve_run(
            tree, defaults=DEFAULTS, initial=initial_parts(tree, overrides), overrides=overrides,
            without=without, source=source,
        )  # fmt: skip
    except UsageError as error:
        hint = _hint(tree, source)
        if not hint:
            raise
        if isinstance(error, ConfigError):
            raise ConfigError(error.source, [*error.problems, hint]) from None
        raise type(error)(f"{error}. {hint}") from None


def with_pinned(tree: Tree, **kinds: str) -> Tree:
    """A run's tree in which models of the hub are named with the commits that they are at.

    Args:
        tree: what a file or the command line gave.
        kinds: of the fields that name models, what these are.

    Raises:
        UsageError, FetchError, CheckpointError: see ``named_place``.
    """
    named = {name: tree[name] for name in kinds if isinstance(tree.get(name), str)}
    return {**tree, **{name: pinned_word(word, kinds[name]) for name, word in named.items()}}


def plan(resolved: ResolvedRun) -> Plan:
    """The plan of a resolved run, with its data's length where the data are there.

    Raises:
        DataError: if data were named and cannot be used.
        CheckpointError: if the tokenizer that it starts from does not fit.
    """
    check_initial(resolved)
    if resolved.config.data is None:
        return planned(resolved, None)
    data = built_dataset(resolved.config.data)
    # A run tells them with its first batch.
    return planned(resolved, data.num_images, notices=data.notices)


def measured_while_training(recipe: RecipeConfig) -> tuple[str, ...]:
    """What is measured on held-out images while a run trains: PSNR, which curves and logs show, what
    the recipe names or else the usual, and what chooses the best weights of adversarial stages."""
    losses = [term.loss for stage in recipe.stages for term in stage.terms]
    adversarial = any(isinstance(loss, AdversarialConfig) for loss in losses)
    wanted = ("psnr", *(recipe.metrics or METRICS), *(("pivot-rfd",) if adversarial else ()))
    return tuple(dict.fromkeys(wanted))


def check_startable(resolved: ResolvedRun) -> None:
    """Refuse a planned run that cannot begin.

    Raises:
        UsageError: if data are missing or the recipe names losses nobody registered.
        CheckpointError: if the tokenizer that it starts from does not fit.
    """
    check_initial(resolved)
    held_out_metrics(resolved.config.recipe.metrics)
    recipe = resolved.config.recipe.label
    if resolved.config.data is None:
        raise UsageError(
            f"recipe {recipe!r} needs data to train on: add --data folder:PATH or --data "
            "parquet:PATH (rpiae list datasets), or try it with --data sample"
        )
    if resolved.missing_losses:
        missing = resolved.missing_losses
        raise UsageError(
            f"recipe {recipe!r} has terms that are not in this version: {', '.join(missing)}. "
            f"Add --without {','.join(missing)}, or install a plugin that brings them"
        )


def planned(
    resolved: ResolvedRun,
    num_images: int | None,
    loads: Iterable[Loading] | None = None,
    *,
    notices: Sequence[str] = (),
) -> Plan:
    """A plan that also says which weights are loaded; those inside this package go without saying."""
    own = Path(__file__).parent
    files = needed(loading(resolved) if loads is None else loads)
    return evolve(
        make_plan(resolved, num_images=num_images, notices=notices),
        loads=tuple(
            f"{file.what}: {file.path or 'to be downloaded'}"
            for file in files
            if file.path is None or not file.path.is_relative_to(own)
        ),
    )


def loading(resolved: ResolvedRun) -> list[Loading]:
    """The parts of a run that load something when it begins."""
    parts = loading_parts(resolved.config, encoder=not brings_pivot(resolved.config))
    return [*parts, *held_out_metrics(measured_while_training(resolved.config.recipe)).values()]


def runtime_of(config: AnyRun) -> Runtime:
    """Where and how a run says that it is computed.

    Raises:
        UsageError: if the device is not there.
    """
    return Runtime(device=config.device, precision=config.precision, compile=config.compile)


def settled(resolved: ResolvedRun, runtime: Runtime) -> ResolvedRun:
    """The run as it is written down: with the precision that was chosen and the commits that were
    loaded, so that a resumed one has the same, and the distributions its parts are from."""
    config = evolve(resolved.config, precision=runtime.precision)
    return evolve(resolved, config=made_with(config))


def made_with(config: R) -> R:
    """A run's config with the commits that were loaded, and the distributions its parts are from."""
    config = pinned(config)
    entries = [registry(part.family).entry(part.name) for part in parts_of(config)]
    foreign = {entry.distribution for entry in entries if _installed(entry.distribution)} - {OWN}
    here = {entry.target.partition(":")[0] for entry in entries if not entry.importable}
    return evolve(
        config,
        requires=tuple(sorted(foreign | set(config.requires))),
        imports=tuple(sorted(here | set(config.imports))),
    )


def _hint(tree: Tree, source: str) -> str:
    """What is missing here of what a run's config says that it is made with, and how to get it."""
    missing = _not_installed(tree.get("requires"))
    if missing:
        return f"{source} requires {', '.join(missing)}: pip install {' '.join(missing)}"
    listed = tree.get("imports")
    modules = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if modules and not all(name in sys.modules for name in modules if name != MAIN):
        return f"{source} has parts of a notebook or script: {import_hint(modules)}"
    return f"{source}: {import_hint([])}" if MAIN in modules else ""


def _not_installed(distributions: Any) -> list[str]:
    listed = distributions if isinstance(distributions, (list, tuple)) else ()
    return [name for name in listed if isinstance(name, str) and name and not _installed(name)]


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

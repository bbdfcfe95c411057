"""A generator's folder: ``config.json`` and ``model.safetensors``, from a model and back to one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import asdict
from torch import Tensor, nn

from rpiae.core.config.convert import parse
from rpiae.core.config.generation import FlowConfig, GeneratorConfig
from rpiae.core.config.tree import unparse
from rpiae.core.errors import CheckpointError, ConfigError, UsageError
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.core.model.naming import converter
from rpiae.core.model.places import Word, named_place, unknown_word
from rpiae.core.model.saved import FORMAT, GENERATOR, SavedModel, open_model, write_model
from rpiae.core.model.saved_parts import FLOATS, fitting, read_parts, written_parts
from rpiae.core.model.state import load_state, written_state
from rpiae.core.runtime.draws import key
from rpiae.core.runtime.weights import check_architecture, shapes

#: Greatest number of values of a latent that a file may ask for.
_MOST_VALUES = 1 << 31

_NORMS = ("latent_mean", "latent_std")


def build_generator(
    config: GeneratorConfig,
    *,
    flow: FlowConfig,
    facts: LatentFacts,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> LatentGenerator:
    """Construct a generator.

    Args:
        config: of the model, its wired fields filled.
        flow: what it learns.
        facts: what it learns it from.
        mean, std: statistics of the latents, where they are normalised.
        device: where; ``"meta"`` gives shapes without memory.
        seed: makes the initialisation a function of it; the global generator is left alone.

    Raises:
        ConfigError: if the values do not fit the model.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device == "meta" else "cpu"):
        if seed is not None:
            torch.manual_seed(key(seed, "initialisation", GENERATOR))
        try:
            module: nn.Module = config.build()
        except UsageError:
            raise
        except ValueError as error:
            raise ConfigError(GENERATOR, [f"{config.label}: {error}"]) from None
    model = LatentGenerator(
        generator=module, flow=flow, facts=facts, mean=mean, std=std, config=config
    )
    return model if device == "meta" else model.to(device)


def save_generator(
    model: LatentGenerator,
    folder: str | os.PathLike[str],
    *,
    rounded_to: torch.dtype | None = None,
) -> Path:
    """Write ``config.json`` and ``model.safetensors``, which know each other by digest.

    Args:
        model: the generator.
        folder: where to.
        rounded_to: writes its parameters in a narrower dtype; they come back in fp32.

    Raises:
        UsageError: if the generator was put together without a config, or its values are too large for
            the narrower dtype.
        CheckpointError: if the folder cannot be written.
    """
    whole: LatentGenerator = getattr(model, "_orig_mod", model)  # out of torch.compile
    if whole.config is None:
        raise UsageError("this generator was put together by hand and has no config to save")
    target = Path(folder)
    state = written_state(whole, rounded_to)
    tree = {
        "format": FORMAT,
        "kind": GENERATOR,
        **written_parts({GENERATOR: whole.config}),
        "flow": unparse(whole.flow),
        "latents": _listed(asdict(whole.facts)),
    }
    write_model(target, tree, state)
    return target


def load_generator_model(folder: Word) -> LatentGenerator:
    """Load a saved generator without its tokenizer, on CPU and in eval mode; running no code from it.

    Args:
        folder: as of ``generator_folder``.

    Raises:
        CheckpointError: if it is missing, damaged, of another format or kind, or needs a plugin that
            is not installed.
        FetchError: if it is on the hub and cannot be had.
    """
    saved = open_model(generator_folder(folder), GENERATOR)
    source = str(saved.folder)
    part = read_parts(saved.config, {GENERATOR: "generators"}, source)[GENERATOR]
    assert isinstance(part, GeneratorConfig)
    flow, facts = _flow(saved.config, source), _facts(saved.config, source)
    norms = _norms(saved, flow, facts, source)
    with fitting(source):
        meta = build_generator(part, flow=flow, facts=facts, mean=norms, std=norms, device="meta")
    there = {name: tensor.shape for name, tensor in saved.tensors.items()}
    check_architecture(source, shapes(meta.state_dict()), there)
    _check_dtypes(saved, source)
    state = saved.read()
    with fitting(source):
        model = build_generator(
            part, flow=flow, facts=facts, mean=state.get("latent_mean"), std=state.get("latent_std")
        )
    load_state(model, state, source=source)
    if norms is not None and not (
        state["latent_mean"].isfinite().all() and (state["latent_std"] > 0).all()
    ):
        raise CheckpointError(f"{source}: latents cannot be normalised by these statistics")
    return model.requires_grad_(False).eval()


def generator_folder(folder: Word, *, revision: str = "", subfolder: str = "") -> Path:
    """The folder that holds ``config.json``: the named one or its ``generator/``.

    Args:
        folder: a generator's folder, or a run's; a model that ships with rpiae; or ``user/name`` on the
            hub. See ``named_place``, of which the rest is too.

    Raises:
        CheckpointError: if there is none.
        FetchError: if it is on the hub and cannot be had.
        UsageError: if revision or subfolder make no sense for it.
    """
    path = named_place(folder, GENERATOR, revision=revision, subfolder=subfolder)
    for candidate in (path, path / GENERATOR):
        if os.path.lexists(candidate / "config.json"):
            return candidate
    if os.path.isfile(path):
        raise CheckpointError(f"{path} is a file: name the folder of a generator or its run")
    what = "has no finished generator yet" if os.path.isdir(path) else "does not exist"
    if os.path.lexists(path / "tokenizer" / "config.json"):
        what = "holds a tokenizer and no generator"
    raise CheckpointError(
        f"{path} {what}: expected config.json and model.safetensors there or in {path / GENERATOR}"
        f"{unknown_word(folder)}"
    )


def _listed(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in tree.items()}


def _flow(config: Mapping[str, Any], source: str) -> FlowConfig:
    with fitting(source):
        return parse(
            config.get("flow"), FlowConfig, source=f"{source}: flow", converter=converter()
        )


def _facts(config: Mapping[str, Any], source: str) -> LatentFacts:
    with fitting(source):
        facts = parse(
            config.get("latents"), LatentFacts, source=f"{source}: latents", converter=converter()
        )
    if min(facts.shape) < 1 or math.prod(facts.shape) > _MOST_VALUES or facts.num_classes < 0:
        raise CheckpointError(f"{source}: config.json: there are no latents {list(facts.shape)}")
    return facts


def _norms(saved: SavedModel, flow: FlowConfig, facts: LatentFacts, source: str) -> Tensor | None:
    """A statistic without memory, of the shape that the flow says; None where latents are not
    normalised."""
    channels, rows, columns = facts.shape
    sides = {"none": None, "channel": (1, 1), "position": (rows, columns)}[flow.normalisation]
    if sides is None:
        return None
    shape = (channels, *sides)
    if any(name not in saved.tensors or saved.tensors[name].shape != shape for name in _NORMS):
        raise CheckpointError(f"{source}: it has no statistics {shape} of its latents")
    return torch.empty(shape, device="meta")


def _check_dtypes(saved: SavedModel, source: str) -> None:
    for name, facts in saved.tensors.items():
        if facts.dtype not in FLOATS:
            raise CheckpointError(
                f"{source}: {name} is {facts.dtype}, which is no dtype of weights"
            )

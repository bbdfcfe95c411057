"""A generator's run from what a user says to what can begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from rpiae.core.config.convert import parse
from rpiae.core.config.generation import GeneratorConfig, GeneratorRunConfig
from rpiae.core.config.parts import DatasetConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import ConfigError
from rpiae.core.model.folders import tokenizer_folder
from rpiae.core.model.latent_generator import LatentFacts
from rpiae.core.model.naming import GENERATOR_FIELDS, converter, name_parts
from rpiae.core.model.resolve import wire
from rpiae.core.model.saved import GENERATOR, TOKENIZER, open_model
from rpiae.core.model.saved_parts import read_parts
from rpiae.core.model.stages import checked_stages
from rpiae.core.registry.registry import Preset
from rpiae.recipes.configs import GeneratorRecipeConfig
from rpiae.runs.generating.learning_from import LearnedFrom, learned_from, moved
from rpiae.runs.resolving import with_pinned

#: The run that nothing was said about; presets' companions come before.
DEFAULTS: Mapping[str, str] = {"generator": "dit-s", "recipe": "flow-quick"}


@frozen(kw_only=True)
class ResolvedGenerator:
    """A generator's run that can be planned and started.

    Attributes:
        config: the run, wired; this is what is saved.
        found: what it learns from.
        origins: where each of its parts came from, in words.
        presets: the presets that were named.
        notices: things worth saying.
    """

    config: GeneratorRunConfig
    found: LearnedFrom
    origins: Mapping[str, str]
    presets: tuple[Preset, ...]
    notices: tuple[str, ...] = ()

    @property
    def recipe(self) -> GeneratorRecipeConfig:
        """Its recipe, of the kind that trains generators."""
        assert isinstance(self.config.recipe, GeneratorRecipeConfig)
        return self.config.recipe


def resolve_generator(
    tree: Tree | None = None,
    *,
    overrides: Sequence[str] = (),
    without: Sequence[str] = (),
    source: str = "the run",
) -> ResolvedGenerator:
    """Expand, parse and wire a generator's run.

    Args:
        tree: what a file or the command line gave; parts as names or tables.
        overrides: ``path=value`` texts, applied after names are expanded.
        without: losses to leave out of every stage.
        source: what messages call the tree.

    Raises:
        UnknownNameError: for a part nobody registered.
        ConfigError: with every problem of the values, or every contradiction between parts.
        UsageError: if what it learns from is not what the run was trained on.
        CheckpointError: if latents or tokenizer cannot be read.
    """
    named = name_parts(
        with_pinned(tree or {}, init=GENERATOR, tokenizer=TOKENIZER), defaults=DEFAULTS, initial={}, overrides=overrides, without=without,
        fields=GENERATOR_FIELDS,
    )  # fmt: skip
    config = parse(named.tree, GeneratorRunConfig, source=source, converter=converter())
    config, problems = _with_wired_data(config)
    stages, dropped, needs = checked_stages(config)
    problems += [
        f"recipe: loss {name!r} is not in this version: add --without {name}, or install a plugin that "
        "brings it"
        for name in named.missing_losses
    ]
    if problems := [*problems, *needs]:
        raise ConfigError(source, problems)
    found = learned_from(config)
    if different := moved(config, found):
        raise ConfigError(source, [different])
    generator, problems = _wired(config.generator, found.facts)
    if problems:
        raise ConfigError(source, problems)
    config = evolve(
        config, generator=generator, recipe=evolve(config.recipe, stages=stages),
        learned_sha256=found.fingerprint, tokenizer_sha256=found.facts.tokenizer_sha256,
    )  # fmt: skip
    return ResolvedGenerator(
        config=config, found=_as_asked(found, config), origins=named.origins, presets=named.presets,
        notices=(*named.notices, *dropped, *_notices(config, found)),
    )  # fmt: skip


def _with_wired_data(config: GeneratorRunConfig) -> tuple[GeneratorRunConfig, list[str]]:
    """A run whose data, where they are encoded on the way, are of the size that the tokenizer takes."""
    if config.data is None or not config.tokenizer:
        return config, []
    saved = open_model(tokenizer_folder(config.tokenizer))
    encoder = read_parts(saved.config, {"encoder": "encoders"}, str(saved.folder))["encoder"]
    facts = {
        f"encoder.{name}": (getattr(encoder.describe(), name), "the tokenizer")  # type: ignore[attr-defined]  # an encoder's config
        for name in ("width", "patch", "output_patch")
    }
    size = saved.config.get("trained_size") or None
    data, problems = wire(
        config.data, facts | {"encoder.image_size": (size, "the tokenizer")}, "data"
    )
    assert isinstance(data, DatasetConfig)
    if getattr(data, "image_size", 0) is None:
        problems.append(
            f"data.image_size: the tokenizer in {config.tokenizer} does not say what size it was trained "
            "on: give the side of the crops in pixels"
        )
    return evolve(config, data=data), problems


def _wired(config: GeneratorConfig, facts: LatentFacts) -> tuple[GeneratorConfig, list[str]]:
    """The generator for latents with these facts, and what contradicts them."""
    origin = f"the tokenizer in {facts.tokenizer}"
    channels, rows, columns = facts.shape
    values = {"channels": channels, "rows": rows, "columns": columns}
    wires: dict[str, tuple[Any, str]] = {f"latents.{n}": (v, origin) for n, v in values.items()}
    wires["latents.num_classes"] = (facts.num_classes, "what it learns from")
    if config.num_classes == 0:  # labels may be left unused
        wires["latents.num_classes"] = (0, "")
    return wire(config, wires, "generator")


def _as_asked(found: LearnedFrom, config: GeneratorRunConfig) -> LearnedFrom:
    """What is learned from, without labels where the generator takes none."""
    if config.generator.num_classes or not found.facts.num_classes:
        return found
    return evolve(found, facts=evolve(found.facts, num_classes=0, label_names=()))


def _notices(config: GeneratorRunConfig, found: LearnedFrom) -> list[str]:
    """What is to be said of labels, and of data that are not used."""
    notices = []
    if not found.facts.num_classes:
        notices.append("there are no labels, so the generator takes no classes")
    if config.held_out and found.stored is None:
        notices.append("held_out has no effect on images: data.held_out says how many are held out")
    return notices

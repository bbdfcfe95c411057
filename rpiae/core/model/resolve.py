"""From a config tree to a resolved run: names expanded, wired fields filled, contradictions found.

Nothing here imports torch (a part's own ``describe`` may, where its config does not hold the facts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs
from attrs import evolve, frozen

from rpiae.core.config.convert import parse
from rpiae.core.config.identity import unpinned
from rpiae.core.config.parts import (
    BridgeConfig,
    BridgeDescription,
    DatasetConfig,
    DecoderConfig,
    EncoderConfig,
    EncoderDescription,
    PartConfig,
    explained,
)
from rpiae.core.config.recipe import ROLES, RecipeConfig, RunConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import ConfigError
from rpiae.core.model.naming import converter, expand, name_parts
from rpiae.core.model.stages import checked_stages, without_motion
from rpiae.core.registry.registry import Preset, registry

P = TypeVar("P", bound=PartConfig)


@frozen(kw_only=True)
class ResolvedTokenizer:
    """Three part configs with every wired field filled, and what they say of themselves."""

    encoder: EncoderConfig
    bridge: BridgeConfig
    decoder: DecoderConfig
    encoder_facts: EncoderDescription
    bridge_facts: BridgeDescription

    @property
    def output_patch(self) -> int:
        """Image pixels per token and side (q)."""
        assert self.decoder.patch is not None
        return self.decoder.patch


@frozen(kw_only=True)
class ResolvedRun:
    """A run that can be planned, and started where ``config.data`` is there and nothing is missing.

    Attributes:
        config: the run, wired; this is what is saved.
        tokenizer: its model part.
        origins: where each of the run's parts came from, in words.
        presets: the presets that were named.
        missing_losses: losses that the recipe names and nobody registered.
        notices: things worth saying (terms left out, and the like).
    """

    config: RunConfig
    tokenizer: ResolvedTokenizer
    origins: Mapping[str, str]
    presets: tuple[Preset, ...]
    missing_losses: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def resolve_run(
    tree: Tree,
    *,
    defaults: Mapping[str, str],
    initial: Mapping[str, tuple[Tree, str]] | None = None,
    overrides: Sequence[str] = (),
    without: Sequence[str] = (),
    source: str = "the run",
) -> ResolvedRun:
    """Expand, parse and wire a run.

    Args:
        tree: what a file or the command line gave; parts as names or tables.
        defaults: names for parts that neither the tree nor a preset's companions give.
        initial: parts of the tokenizer that the run starts from, and where they are from in words;
            they come before companions.
        overrides: ``path=value`` texts, applied after names are expanded.
        without: losses to leave out of every stage.
        source: what messages call the tree.

    Raises:
        UnknownNameError: for a part nobody registered.
        ConfigError: with every problem of the values, or every contradiction between parts.
    """
    named = name_parts(
        tree, defaults=defaults, initial=initial or {}, overrides=overrides, without=without
    )
    config = parse(named.tree, RunConfig, source=source, converter=converter())
    tokenizer = _tokenizer_of(config, source)
    data, notices, problems = _wired_data(config, tokenizer)
    config = evolve(
        config, encoder=tokenizer.encoder, bridge=tokenizer.bridge, decoder=tokenizer.decoder,
        data=data,
    )  # fmt: skip
    config, without = _without_stages(config)
    stages, dropped, needs = checked_stages(config)
    problems += [*needs, *_start_problems(config)]
    if problems:
        raise ConfigError(source, problems)
    config = evolve(config, recipe=evolve(config.recipe, stages=stages))
    return ResolvedRun(
        config=config,
        tokenizer=tokenizer,
        origins=named.origins,
        presets=named.presets,
        missing_losses=named.missing_losses,
        notices=(*named.notices, *notices, *without, *dropped, *without_motion(config)),
    )


def _without_stages(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """A run without the stages that a trained tokenizer makes needless, where it starts from one; a
    word about them."""
    if not config.init:
        return config, []
    stages = tuple(stage for stage in config.recipe.stages if not stage.without_init)
    notices = [
        f"stage {stage.name} left out, as the run starts from {config.init}"
        for stage in config.recipe.stages
        if stage.without_init
    ]
    return evolve(config, recipe=evolve(config.recipe, stages=stages)), notices


def _tokenizer_of(config: RunConfig, source: str) -> ResolvedTokenizer:
    recipe = config.recipe
    wishes = {"recipe.default_positions": (recipe.default_positions, f"recipe {recipe.label!r}")}
    return resolve_tokenizer(
        config.encoder, config.bridge, config.decoder, source=source,
        image_size=getattr(config.data, "image_size", None),
        recipe={fact: wish for fact, wish in wishes.items() if wish[0]},
    )  # fmt: skip


def _wired_data(
    config: RunConfig, tokenizer: ResolvedTokenizer
) -> tuple[DatasetConfig | None, list[str], list[str]]:
    """The dataset with its wired fields filled; notices; problems."""
    if config.data is None:
        return None, [], []
    facts = _facts(tokenizer.encoder_facts, tokenizer.encoder)
    data, problems = wire(config.data, facts, "data")
    data, notices = _resized(data, config.recipe)
    return data, notices + _movable(data), problems


def _movable(data: DatasetConfig) -> list[str]:
    """A word about data of the hub that may be others tomorrow."""
    return [
        f"data: nobody here knows which commit of {part.repository()} is taken, so the same run may "
        "see other images one day; set revision to a commit"
        for part in unpinned(data)
    ]


def resolve_tokenizer(
    encoder: EncoderConfig,
    bridge: BridgeConfig,
    decoder: DecoderConfig,
    *,
    source: str = "the tokenizer",
    image_size: int | None = None,
    recipe: Mapping[str, tuple[Any, str]] | None = None,
) -> ResolvedTokenizer:
    """Fill the wired fields of three part configs.

    Args:
        encoder, bridge, decoder: the parts.
        source: what messages call them.
        image_size: side of the training crops; the encoder's own where not given.
        recipe: facts that a recipe brings, as ``wire`` takes them.

    Raises:
        ConfigError: with every contradiction between them.
    """
    with explained(encoder, "cannot describe itself"):
        encoder_facts = encoder.describe()
    facts = _facts(encoder_facts, encoder)
    bridge, in_bridge = wire(bridge, facts, "bridge")
    decoder, in_decoder = wire(decoder, facts | dict(recipe or {}), "decoder")
    problems = [*in_bridge, *in_decoder]
    if encoder_facts.frames != decoder.frames_per_token:
        problems.append(_unlike_in_time(encoder, encoder_facts.frames, decoder))
    if problems:
        raise ConfigError(source, problems)
    with explained(bridge, "cannot describe itself"):
        bridge_facts = bridge.describe()
    assert decoder.patch is not None
    side = image_size or encoder_facts.image_size
    along = math.ceil(side / (decoder.patch * bridge_facts.downsampling))
    tokens = along * bridge_facts.downsampling
    return ResolvedTokenizer(
        encoder=encoder,
        bridge=bridge,
        decoder=decoder.on_grid(tokens, tokens),
        encoder_facts=encoder_facts,
        bridge_facts=bridge_facts,
    )


def _unlike_in_time(encoder: EncoderConfig, frames: int, decoder: DecoderConfig) -> str:
    """Message for a decoder that makes other than the frames of the encoder's tokens."""
    made, known = decoder.frames_per_token, registry(decoder.family)
    around = [
        f"{entry.name}:{decoder.label}"
        for entry in known.entries()
        if made == 1 and entry.argument and _of_videos(known.load(entry))
    ]
    such = f", such as {' or '.join(around)}" if around else f" of {frames} frames per token"
    return (
        f"decoder {decoder.label!r} makes {made} frame{'s' * (made > 1)} per token and encoder "
        f"{encoder.label!r} takes {frames}: take a decoder of videos{such}"
    )


def _of_videos(decoder: type[PartConfig]) -> bool:
    """Whether such decoders can make several frames per token."""
    of_images = DecoderConfig.frames_per_token
    return getattr(decoder, "frames_per_token", of_images) is not of_images


def part_config(family: str, given: str | Tree | PartConfig) -> PartConfig:
    """A part's config from a name, a table or a config.

    Raises:
        UnknownNameError: if nobody registered the name.
        ConfigError: if the table does not fit.
    """
    if isinstance(given, PartConfig):
        return given
    tree, _ = expand(family, given)
    known = registry(family)
    cls = known.config_class(tree["name"], called=tree.get("preset", ""))
    return parse(tree, cls, source=f"{known.singular} {tree['name']!r}", converter=converter())


def wire(part: P, facts: Mapping[str, tuple[Any, str]], path: str) -> tuple[P, list[str]]:
    """Fill the wired fields of a part from facts, and of one inside it, for which what is given of the
    part goes first; the part, and the contradictions."""
    filled: dict[str, Any] = {}
    problems: list[str] = []
    own = {
        a.metadata["wired"]: (getattr(part, a.name), f"{path} {part.label!r}")
        for a in attrs.fields(type(part))
        if "wired" in a.metadata and getattr(part, a.name) is not None
    }
    for a in attrs.fields(type(part)):
        given = getattr(part, a.name)
        if isinstance(given, PartConfig):
            filled[a.name], within = wire(given, {**facts, **own}, f"{path}.{a.name}")
            problems += within
        fact = a.metadata.get("wired")
        if fact is None or fact not in facts:
            continue
        value, origin = facts[fact]
        if given is None:
            filled[a.name] = value
        elif a.metadata["strict"] and given != value:
            problems.append(
                f"{path} {part.label!r} was built for {given} {a.metadata['what']} but {origin} "
                f"gives {value}. Set {path}.{a.name} = {value}, or leave it out to have it filled in."
            )
    return evolve(part, **filled), problems


def _resized(data: DatasetConfig, recipe: RecipeConfig) -> tuple[DatasetConfig, list[str]]:
    """Data with images of the size that the recipe wants, where they say none; a word about it."""
    size = getattr(data, "image_size", None)
    if not recipe.default_resize or size is None:
        return data, []
    side = math.ceil(recipe.default_resize * size)
    found = data.resized(side)
    if found == data:
        return data, []
    return found, [
        f"training images are resized to a short side of {side} pixels, as recipe {recipe.label!r} "
        "wants it; data.resize takes its place"
    ]


def _facts(encoder: EncoderDescription, config: EncoderConfig) -> dict[str, tuple[Any, str]]:
    origin = f"encoder {config.label!r}"
    return {
        f"encoder.{a.name}": (getattr(encoder, a.name), origin)
        for a in attrs.fields(EncoderDescription)
    }


def _start_problems(config: RunConfig) -> list[str]:
    """What is wrong with the parts that a run takes over."""
    if not config.init_parts:
        return [f"init_parts: name at least one of {', '.join(ROLES)}"]
    if not config.init and set(config.init_parts) != set(ROLES):
        return [
            "init_parts: there is nothing to take them from: set init to a run's folder (--init)"
        ]
    return []

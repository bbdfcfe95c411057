"""From a config tree to a resolved run: names expanded, wired fields filled, contradictions found.

Nothing here imports torch (a part's own ``describe`` may, where its config does not hold the facts).
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs
import cattrs
from attrs import evolve, frozen

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.config.parts import (
    BridgeConfig,
    BridgeDescription,
    CriticConfig,
    DatasetConfig,
    DecoderConfig,
    EncoderConfig,
    EncoderDescription,
    LossConfig,
    MetricConfig,
    PartConfig,
    explained,
)
from rpiae.core.config.recipe import (
    ROLES,
    AdversarialConfig,
    RecipeConfig,
    RunConfig,
    StageConfig,
    TermConfig,
)
from rpiae.core.config.tree import Tree, apply_override, parse_override
from rpiae.core.errors import ConfigError, UsageError, did_you_mean
from rpiae.core.registry.registry import Preset, registry
from rpiae.core.runtime.names import shown

P = TypeVar("P", bound=PartConfig)

#: Fields of a run that are parts, with their family; companions come from the first.
FIELDS: Mapping[str, str] = {
    "encoder": "encoders",
    "bridge": "bridges",
    "decoder": "decoders",
    "recipe": "recipes",
    "data": "datasets",
}


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


@functools.cache
def converter() -> cattrs.Converter:
    """The strict converter that also reads parts: names, and tables whose ``name`` decides the class."""
    made = make_converter()
    bases = (
        EncoderConfig, BridgeConfig, DecoderConfig, LossConfig, CriticConfig, DatasetConfig,
        MetricConfig,
    )  # fmt: skip

    def structure(value: Any, base: type[PartConfig]) -> PartConfig:
        if isinstance(value, base):
            return value
        named = value.get("name") if isinstance(value, dict) else value
        if not isinstance(named, str):
            raise ValueError(f"expected one of the {base.family}: a name, or a table with a name")
        # A part inside a part, such as a critic's backbone, is named like any other.
        tree, _ = _expand(base.family, value)
        return made.structure(
            tree,
            registry(base.family).config_class(tree["name"], called=str(tree.get("preset") or "")),
        )

    made.register_structure_hook_func(lambda t: t in bases, structure)
    return made


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
    tree = copy.deepcopy(tree)
    late = []
    for text in overrides:
        steps, value = parse_override(text)
        if len(steps) == 1:
            apply_override(tree, text)
        elif len(steps) == 2 and steps[0] in FIELDS and steps[1] == "name":
            tree[str(steps[0])] = value
        else:
            late.append(text)
    expanded, origins, presets = _expanded(tree, defaults, initial or {})
    for text in late:
        _override(expanded, text)
    missing, notices = _prepare_terms(expanded, without)
    config = parse(expanded, RunConfig, source=source, converter=converter())
    recipe = config.recipe
    wanted = {"recipe.default_positions": (recipe.default_positions, f"recipe {recipe.name!r}")}
    tokenizer = resolve_tokenizer(
        config.encoder, config.bridge, config.decoder, source=source,
        image_size=getattr(config.data, "image_size", None),
        recipe={fact: wish for fact, wish in wanted.items() if wish[0]},
    )  # fmt: skip
    data, problems = config.data, list[str]()
    if data is not None:
        facts = _facts(tokenizer.encoder_facts, tokenizer.encoder)
        data, problems = wire(data, facts, "data")
        data, said = _resized(data, recipe)
        notices += said
    config = evolve(
        config, encoder=tokenizer.encoder, bridge=tokenizer.bridge, decoder=tokenizer.decoder,
        data=data,
    )  # fmt: skip
    stages, dropped, needs = _checked_stages(config, tokenizer)
    problems += [*needs, *_start_problems(config)]
    if problems:
        raise ConfigError(source, problems)
    return ResolvedRun(
        config=evolve(config, recipe=evolve(config.recipe, stages=stages)),
        tokenizer=tokenizer,
        origins=origins,
        presets=presets,
        missing_losses=missing,
        notices=(*notices, *dropped),
    )


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
    if in_bridge or in_decoder:
        raise ConfigError(source, [*in_bridge, *in_decoder])
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


def part_config(family: str, given: str | Tree | PartConfig) -> PartConfig:
    """A part's config from a name, a table or a config.

    Raises:
        UnknownNameError: if nobody registered the name.
        ConfigError: if the table does not fit.
    """
    if isinstance(given, PartConfig):
        return given
    tree, _ = _expand(family, given)
    known = registry(family)
    cls = known.config_class(tree["name"], called=tree.get("preset", ""))
    return parse(tree, cls, source=f"{known.singular} {tree['name']!r}", converter=converter())


def wire(part: P, facts: Mapping[str, tuple[Any, str]], path: str) -> tuple[P, list[str]]:
    """Fill a part's wired fields from facts; the part, and the contradictions."""
    filled: dict[str, Any] = {}
    problems: list[str] = []
    for a in attrs.fields(type(part)):
        fact = a.metadata.get("wired")
        if fact is None or fact not in facts:
            continue
        value, origin = facts[fact]
        given = getattr(part, a.name)
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
        f"training images are resized to a short side of {side} pixels, as recipe {recipe.name!r} "
        "wants it; data.resize takes its place"
    ]


def _facts(encoder: EncoderDescription, config: EncoderConfig) -> dict[str, tuple[Any, str]]:
    origin = f"encoder {config.label!r}"
    return {
        f"encoder.{a.name}": (getattr(encoder, a.name), origin)
        for a in attrs.fields(EncoderDescription)
    }


def _expanded(
    tree: Tree, defaults: Mapping[str, str], initial: Mapping[str, tuple[Tree, str]]
) -> tuple[Tree, dict[str, str], tuple[Preset, ...]]:
    expanded = dict(tree)
    origins: dict[str, str] = {}
    presets: list[Preset] = []
    companions: dict[str, tuple[str, str]] = {}
    for name, family in FIELDS.items():
        if name in tree:
            given, origins[name] = tree[name], "given"
        elif name in initial:
            given, origins[name] = initial[name]
        elif name in companions:
            given, origins[name] = companions[name]
        elif name in defaults:
            given, origins[name] = defaults[name], "the default"
        elif name == "data" and isinstance(recipe := expanded.get("recipe"), dict):
            given = recipe.get("default_data", "")
            if not given:
                continue
            origins[name] = f"the default of recipe {recipe.get('name')!r}"
        else:
            continue
        expanded[name], preset = _expand(family, given)
        if preset is not None:
            presets.append(preset)
            for partner, choice in preset.companions.items():
                companions.setdefault(partner, (choice, f"companion of {name} {preset.name!r}"))
    return expanded, origins, tuple(presets)


def _expand(family: str, given: Any) -> tuple[Tree, Preset | None]:
    """A name, or a table with a name, as a table of the part's fields."""
    if isinstance(given, str):
        selection = registry(family).select(given)
        return selection.tree, selection.preset
    if not isinstance(given, dict):
        raise UsageError(f"{family}: expected a name or a table, got {shown(given)}")
    name = given.get("name")
    if not isinstance(name, str) and family != "recipes":
        raise UsageError(
            f'{family}: a table needs a name, such as name = "…" (rpiae list {family}), got {shown(given)}'
        )
    if not isinstance(name, str) or (family == "recipes" and "stages" in given):
        return dict(given), None
    selection = registry(family).select(name)
    preset = selection.preset
    if preset is None and family != "recipes" and "preset" in given:
        preset = next((p for p in registry(family).presets() if p.name == given["preset"]), None)
    rest = {k: v for k, v in given.items() if k != "name"}
    return selection.tree | rest, preset


def _prepare_terms(tree: Tree, without: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Expand the losses of every term in place; the losses nobody registered, and notices."""
    recipe = tree.get("recipe")
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    if not isinstance(stages, list):
        return (), []
    losses = registry("losses")
    planned = _planned_losses()
    missing: list[str] = []
    removed: set[str] = set()
    met: set[str] = set()
    for stage in stages:
        terms = stage.get("terms") if isinstance(stage, dict) else None
        if not isinstance(terms, list):
            continue
        kept = []
        for term in terms:
            loss = term.get("loss") if isinstance(term, dict) else None
            name = loss.get("name") if isinstance(loss, dict) else loss
            met.add(str(name))
            if name in without:
                removed.add(str(name))
            elif isinstance(name, str) and name in planned:
                missing.append(name)
            elif isinstance(loss, str):
                kept.append(term | {"loss": losses.select(loss).tree})
            else:
                kept.append(term)
        stage["terms"] = kept
    for name in without:
        if name not in removed:
            raise UsageError(
                f"--without {name}: no stage has such a term.{did_you_mean(name, met)} "
                f"The recipe's terms: {', '.join(sorted(met))}"
            )
    notices = [f"left out of every stage: {', '.join(sorted(removed))}"] if removed else []
    return tuple(dict.fromkeys(missing)), notices


def _planned_losses() -> set[str]:
    """Losses that a registered recipe names and nobody brings: not a typing error of the user's."""
    losses = registry("losses")
    known = {entry.name for entry in losses.entries()}
    named = {
        term["loss"] if isinstance(term["loss"], str) else term["loss"]["name"]
        for preset in registry("recipes").presets()
        for stage in preset.values["stages"]
        for term in stage["terms"]
    }
    return {name for name in named if name.partition(":")[0] not in known}


#: Fields of which one replaces the other.
ALTERNATIVES = {
    one: other
    for pair in (
        ("steps", "epochs"), ("warmup_steps", "warmup_epochs"), ("start_steps", "start_epochs")
    )
    for one, other in (pair, pair[::-1])
}  # fmt: skip


def _override(tree: Tree, text: str) -> None:
    """Apply one ``--set``: a field takes the place of its alternative, and a preset's name goes
    with the values that made it one."""
    steps, value = parse_override(text)
    role = str(steps[0])
    part: Any = tree.get(role)
    chosen = role in ROLES and len(steps) == 2 and isinstance(part, dict)
    if chosen and part.get(str(steps[1]), value) != value:
        fields = attrs.fields_dict(registry(FIELDS[role]).config_class(part["name"]))
        if steps[1] in fields and fields[str(steps[1])].metadata.get("argument", True):
            part.pop("preset", None)
    apply_override(tree, text)
    node: Any = tree
    for step in steps[:-1]:
        node = node[step]
    if isinstance(node, dict):
        node.pop(ALTERNATIVES.get(str(steps[-1]), ""), None)


def _checked_stages(
    config: RunConfig, tokenizer: ResolvedTokenizer
) -> tuple[tuple[StageConfig, ...], list[str], list[str]]:
    stages: list[StageConfig] = []
    notices: list[str] = []
    problems: list[str] = []
    names = [stage.name for stage in config.recipe.stages]
    if not names:
        problems.append("recipe.stages: a recipe needs at least one stage")
    for name in sorted({n for n in names if names.count(n) > 1}):
        problems.append(f"recipe.stages: two stages are called {name!r}")
    for index, stage in enumerate(config.recipe.stages):
        path = f"recipe.stages[{index}]"
        if (stage.steps is None) == (stage.epochs is None):
            problems.append(f"{path}: give one of steps and epochs")
        problems += _outside(stage, path)
        for position, pattern in enumerate(stage.train):
            role = pattern.partition(".")[0]
            if role not in ROLES:
                problems.append(
                    f"{path}.train[{position}]: {pattern!r} does not begin with a role."
                    f"{did_you_mean(role, ROLES)} Roles: {', '.join(ROLES)}"
                )
        offered = _offered(stage, tokenizer)
        terms: list[TermConfig] = []
        for position, term in enumerate(stage.terms):
            unmet = sorted(term.loss.needs - offered)
            if not unmet:
                terms.append(term)
            elif term.optional:
                notices.append(
                    f"stage {stage.name}: {term.loss.label} left out, it needs {' and '.join(unmet)}"
                )
            else:
                problems.append(
                    f"{path}.terms[{position}]: loss {term.loss.label!r} needs "
                    f"{' and '.join(unmet)}, which this stage does not have "
                    f"(bridge {config.bridge.label!r}, use_bridge = {str(stage.use_bridge).lower()})"
                    ". Leave the term out, or set optional = true."
                )
        if not terms and not problems:
            problems.append(f"{path}: no loss terms are left")
        if any(t.adaptive for t in terms) and not any(t.reference for t in terms):
            problems.append(
                f"{path}: an adaptive weight needs at least one term with reference = true"
            )
        against, said = _adversaries(terms, stage.name, path)
        problems += against
        notices += said
        stages.append(evolve(stage, terms=tuple(terms)))
    return tuple(stages), notices, problems


def _start_problems(config: RunConfig) -> list[str]:
    """What is wrong with the parts that a run takes over."""
    if not config.init_parts:
        return [f"init_parts: name at least one of {', '.join(ROLES)}"]
    if not config.init and set(config.init_parts) != set(ROLES):
        return [
            "init_parts: there is nothing to take them from: set init to a run's folder (--init)"
        ]
    return []


def _adversaries(terms: Sequence[TermConfig], stage: str, path: str) -> tuple[list[str], list[str]]:
    """What is wrong with a stage's adversarial terms, and what is odd about them."""
    problems, notices = [], []
    playing = [(term, term.loss) for term in terms if isinstance(term.loss, AdversarialConfig)]
    if len(playing) > 1:
        problems.append(
            f"{path}: a stage has one critic, so one adversarial term, not {len(playing)}"
        )
    for term, loss in playing:
        if loss.critic_start_steps and loss.critic_start_epochs:
            problems.append(f"{path}: give one of critic_start_steps and critic_start_epochs")
        mixed = (term.start_epochs and loss.critic_start_steps) or (
            term.start_steps and loss.critic_start_epochs
        )
        before = (term.start_steps, term.start_epochs) < (
            loss.critic_start_steps, loss.critic_start_epochs,
        )  # fmt: skip
        if mixed:
            notices.append(
                f"stage {stage}: {loss.label} counts from "
                f"{_when(term.start_steps, term.start_epochs)} and its critic begins to learn from "
                f"{_when(loss.critic_start_steps, loss.critic_start_epochs)}: which is first depends "
                "on the number of images"
            )
        elif before:
            notices.append(
                f"stage {stage}: {loss.label} counts before its critic has begun to learn "
                "(critic_start_… is later than start_…)"
            )
    return problems, notices


def _when(steps: int, epochs: float) -> str:
    return f"step {steps}" if steps else f"epoch {epochs:g}"


def _outside(stage: StageConfig, path: str) -> list[str]:
    """Values of a stage that are out of range, or given twice."""
    problems = []
    optimiser = stage.optimiser
    if not 0 <= stage.ema < 1:
        problems.append(f"{path}.ema: must be at least 0 and below 1, got {stage.ema}")
    if not all(0 <= beta < 1 for beta in optimiser.betas):
        given = list(optimiser.betas)
        problems.append(f"{path}.optimiser.betas: must be at least 0 and below 1, got {given}")
    if optimiser.warmup_steps and optimiser.warmup_epochs:
        problems.append(f"{path}.optimiser: give one of warmup_steps and warmup_epochs")
    problems += [
        f"{path}.terms[{position}]: give one of start_steps and start_epochs"
        for position, term in enumerate(stage.terms)
        if term.start_steps and term.start_epochs
    ]
    return problems


def _offered(stage: StageConfig, tokenizer: ResolvedTokenizer) -> set[str]:
    offered = {"pixels", "features", "replica", "critic"}
    if stage.use_bridge:
        offered |= {"latent", "decoded_features"}
        if tokenizer.bridge_facts.gaussian:
            offered.add("gaussian")
    return offered

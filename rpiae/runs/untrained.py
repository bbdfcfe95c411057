"""Which parts a recipe trains, and which would be saved as they began."""

from __future__ import annotations

import re
from collections.abc import Set

from rpiae.core.config.recipe import StageConfig, StageLength, TermConfig
from rpiae.core.model.resolve import ResolvedRun
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.registry.registry import registry

#: What terms look at that comes out of the bridge, where it is in the path.
BEHIND_BRIDGE = frozenset({"pixels", "latent", "decoded_features", "gaussian"})

#: Tag of parts that are complete without training: they have no parameters, or are fitted.
NO_TRAINING = "no-training"


def within_reach(stage: StageConfig, length: StageLength, *, in_epochs: bool) -> set[str]:
    """Roles on a stage's path that its terms move.

    Args:
        stage: the stage.
        length: its lengths.
        in_epochs: whether lengths in epochs are known; else terms that begin then count.
    """
    if not stage.optimiser.learning_rate:
        return set()
    terms = [
        term
        for term in stage.terms
        if term.weight
        and (length.start(term) < length.steps or not (in_epochs or _in_steps(term, stage)))
    ]
    needs = {need for term in terms for need in term.loss.needs}
    roles = {"encoder"} if needs & {*BEHIND_BRIDGE, "features"} else set()
    if stage.use_bridge and needs & BEHIND_BRIDGE:
        roles.add("bridge")
    return roles | ({"decoder"} if "pixels" in needs else set())


def _begun(resolved: ResolvedRun) -> set[str]:
    """Roles that do not begin at random: loaded, or fitted before they are used."""
    config = resolved.config
    begun: set[str] = set(config.init_parts) if config.init else set()
    begun |= {"encoder"} if config.encoder.pretrained else set()
    return begun | ({"bridge"} if resolved.tokenizer.bridge_facts.fitted else set())


def _in_steps(term: TermConfig, stage: StageConfig) -> bool:
    """Whether both the stage's length and the term's start are told without epochs."""
    return stage.steps is not None and not term.start_epochs


def untrained(
    model: RPiAE, trained: Set[str], resolved: ResolvedRun
) -> tuple[list[str], list[str]]:
    """Parts that begin at random and that no stage trains, and those trained in part, in words."""
    config = resolved.config
    problems, notices = [], []
    for role, part in model.roles.items():
        if role in _begun(resolved):
            continue
        sizes = {f"{role}.{name}": p.numel() for name, p in part.named_parameters()}
        left = sum(size for name, size in sizes.items() if name not in trained)
        label = getattr(config, role).label
        if left and left == sum(sizes.values()):
            problems.append(
                f"recipe.stages: no stage of recipe {config.recipe.label!r} trains the {role} "
                f"{label!r}, which begins at random and would be saved so: {', or '.join(_ways_out(role))}"
            )
        elif left:
            notices.append(
                f"{left:,} of the {sum(sizes.values()):,} parameters of the {role} {label!r} are "
                "trained by no stage: they stay as initialised"
            )
    return problems, notices


def _ways_out(role: str) -> list[str]:
    """What to do about a part that no stage trains."""
    ways = []
    if role == "encoder":
        ways.append("take its pretrained weights with encoder.pretrained = true")
    complete = [
        e.pattern or e.name for e in registry(f"{role}s").entries() if NO_TRAINING in e.tags
    ]
    if complete:
        names = ", ".join(re.sub(r"\{\w+\}", "N", name) for name in complete)
        ways.append(f"take a {role} that needs no training ({names})")
    recipes = [
        preset.name
        for preset in registry("recipes").presets()
        if any(
            role in stage.get("train", ()) and (role != "bridge" or stage.get("use_bridge", True))
            for stage in preset.values.get("stages", ())
        )
    ]
    return [
        *ways,
        f"take a recipe that trains it ({', '.join(recipes)})",
        f"add {role!r} to `train` of a stage that has it in its path, with terms that look behind it, "
        "weigh more than 0 and begin before the stage ends, and a learning rate above 0",
        "start from a trained tokenizer with --init",
    ]

"""What is wrong with the stages of a run's recipe, and which of their terms stay. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from attrs import evolve

from rpiae.core.config.generation import GeneratorRunConfig
from rpiae.core.config.recipe import AdversarialConfig, RunConfig, StageConfig, TermConfig

#: A run of any task that ships.
AnyRun = RunConfig | GeneratorRunConfig


class StageRules(Protocol):
    """What a task knows of the stages that train it; a recipe's config builds it."""

    def problems(self, stage: StageConfig) -> Iterator[str]:
        """Names in a stage that the task does not know, each with its path in the stage."""

    def offers(self, stage: StageConfig, config: AnyRun) -> tuple[frozenset[str], str]:
        """What a stage has for its terms, names out of ``NEEDS``, and what decides that, in words."""


def checked_stages(
    config: AnyRun,
) -> tuple[tuple[StageConfig, ...], list[str], list[str]]:
    """The stages of a run without optional terms that lack what they need; notices; problems."""
    if config.recipe.trains not in ("", config.trains):
        return (), [], [
            f"recipe: {config.recipe.label!r} trains a {config.recipe.trains}, and this run is of a "
            f"{config.trains}: take another (rpiae list recipes)"
        ]  # fmt: skip
    rules: StageRules = config.recipe.build()
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
        problems += [f"{path}.{problem}" for problem in rules.problems(stage)]
        offered, because = rules.offers(stage, config)
        terms, left_out, unmet = _met_terms(stage, path, offered, because)
        notices += left_out
        problems += unmet
        if not terms and not problems:
            problems.append(f"{path}: no loss terms are left")
        if any(t.adaptive for t in terms) and not any(t.reference for t in terms):
            problems.append(
                f"{path}: an adaptive weight needs at least one term with reference = true"
            )
        if config.recipe.spike_guard and _changes_midway(terms):
            problems.append(
                f"{path}: with recipe.spike_guard a stage's loss is compared with what it was, so no term "
                "can begin late, or play against a critic"
            )
        against, said = _adversaries(terms, stage.name, path)
        problems += against
        notices += said
        stages.append(evolve(stage, terms=terms))
    return tuple(stages), notices, problems


def without_motion(config: RunConfig) -> list[str]:
    """What has no effect in the stages of a resolved run, as they see no clips, stage by stage."""
    data = config.data
    if data is None:
        return []
    still = ""
    if not data.clips:
        still = "the data are images"
    elif getattr(data, "frames", None) == 1:
        still = "clips have one frame (data.frames)"
    notices = []
    for stage in config.recipe.stages:
        idle = ["image_share"] if still and stage.image_share else []
        because = still or ("all steps are of single frames" if stage.image_share == 1 else "")
        if because:
            idle += [term.loss.label for term in stage.terms if term.loss.over_time]
        if idle:
            notices.append(
                f"stage {stage.name}: {' and '.join(idle)} {'have' if idle[1:] else 'has'} no effect, "
                f"as {because}"
            )
    return notices


def _met_terms(
    stage: StageConfig, path: str, offered: frozenset[str], because: str
) -> tuple[tuple[TermConfig, ...], list[str], list[str]]:
    """A stage's terms that have what they need; notices of optional ones that do not; problems."""
    terms, notices, problems = [], [], []
    for position, term in enumerate(stage.terms):
        unmet = " and ".join(sorted(term.loss.needs - offered))
        if not unmet:
            terms.append(term)
        elif term.optional:
            notices.append(f"stage {stage.name}: {term.loss.label} left out, it needs {unmet}")
        else:
            problems.append(
                f"{path}.terms[{position}]: loss {term.loss.label!r} needs {unmet}, which this "
                f"stage does not have ({because}). Leave the term out, or set optional = true."
            )
    return tuple(terms), notices, problems


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


def _changes_midway(terms: Sequence[TermConfig]) -> bool:
    """Whether a stage's loss changes for other reasons than what is learned."""
    return any(
        term.start_steps or term.start_epochs or term.ramp_steps or term.adaptive
        or isinstance(term.loss, AdversarialConfig)
        for term in terms
    )  # fmt: skip


def _when(steps: int, epochs: float) -> str:
    return f"step {steps}" if steps else f"epoch {epochs:g}"


def _outside(stage: StageConfig, path: str) -> list[str]:
    """Values of a stage that are out of range, or given twice."""
    problems = []
    optimiser = stage.optimiser
    for name, decays in (("ema", (stage.ema,)), ("more_ema", stage.more_ema)):
        problems += [
            f"{path}.{name}: must be at least 0 and below 1, got {decay}"
            for decay in decays
            if not 0 <= decay < 1
        ]
    if len(set(stage.more_ema)) < len(stage.more_ema):
        problems.append(f"{path}.more_ema: a decay is given twice")
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

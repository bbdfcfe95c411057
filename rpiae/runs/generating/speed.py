"""How fast a generator is, what it costs, and how much of the machine's speed that takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import evolve, frozen

from rpiae.core.config.convert import parse
from rpiae.core.config.generation import GeneratorRunConfig
from rpiae.core.config.recipe import batch_size
from rpiae.core.config.tree import Tree
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.generator_folders import build_generator
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.core.model.naming import GENERATOR_FIELDS, converter, name_parts
from rpiae.core.model.stages import checked_stages
from rpiae.core.runtime.memory import MemoryNeed, memory_need
from rpiae.core.runtime.processes import MatrixSpeed, Precision, Runtime, matrix_speed
from rpiae.core.training.freeze import apply_stage
from rpiae.data.synthetic import SyntheticLatents
from rpiae.recipes.configs import GeneratorRecipeConfig
from rpiae.runs import timing
from rpiae.runs.generating.resolving import DEFAULTS
from rpiae.runs.resolving import runtime_of
from rpiae.runs.timing import PeakMemory, Speed, multiply_adds, step_seconds, timed
from rpiae.tasks.generator.task import GeneratorTask

#: What is not said of the latents: those of the released generator, and its classes.
USUAL = {"latent_channels": 64, "rows": 16, "columns": 16, "num_classes": 1000}


@frozen(kw_only=True)
class Measured:
    """A generator to be measured, on noise in place of latents.

    Attributes:
        config: the run, all fields of its latents filled.
        recipe: of it, its latents not normalised.
        facts: of the latents.
    """

    config: GeneratorRunConfig
    recipe: GeneratorRecipeConfig
    facts: LatentFacts

    def build(self, device: torch.device | str) -> LatentGenerator:
        """The generator, at random."""
        return build_generator(
            self.config.generator, flow=self.recipe.flow, facts=self.facts, device=device,
            seed=self.config.seed,
        )  # fmt: skip

    @property
    def memory(self) -> MemoryNeed:
        """What its training takes at the least."""
        model = self.build("meta")
        stages = self.recipe.stages
        trained = {each.name: apply_stage(model.roles, each.train).trained for each in stages}
        return memory_need(model.roles, trained)


def resolve_measured(
    tree: Tree,
    *,
    overrides: Sequence[str] = (),
    without: Sequence[str] = (),
    source: str = "the run",
) -> Measured:
    """Expand and parse what is to be measured; latents and data that it names are not read.

    Args:
        tree, overrides, without, source: see ``resolve_generator``.

    Raises:
        UsageError: with all that is wrong about it.
    """
    named = name_parts(
        tree, defaults=DEFAULTS, initial={}, overrides=overrides, without=without,
        fields=GENERATOR_FIELDS,
    )  # fmt: skip
    config = parse(named.tree, GeneratorRunConfig, source=source, converter=converter())
    stages, _, problems = checked_stages(config)
    if problems:
        raise ConfigError(source, problems)
    recipe = config.recipe
    assert isinstance(recipe, GeneratorRecipeConfig)
    flow = evolve(recipe.flow, normalisation="none")
    given = {name: getattr(config.generator, name) for name in USUAL}
    values: dict[str, Any] = {n: USUAL[n] if value is None else value for n, value in given.items()}
    facts = LatentFacts(
        shape=(values["latent_channels"], values["rows"], values["columns"]),
        tokenizer="", tokenizer_sha256="", num_classes=values["num_classes"],
    )  # fmt: skip
    return Measured(
        config=evolve(config, generator=evolve(config.generator, **values)),
        recipe=evolve(recipe, stages=stages, flow=flow),
        facts=facts,
    )


def measure_generator(
    measured: Measured, *, precisions: tuple[Precision, ...], repeats: int = 5
) -> Iterator[MatrixSpeed | Speed]:
    """Measure a sampling step and the training steps of a generator; see ``rpiae.runs.speed.measure``.

    A sampling step is one of those that a sample takes, without guidance, which takes two at once.

    Args:
        measured: the generator; its weights are random.
        precisions: which to measure.
        repeats: timed repetitions of each operation, after one that is not; at least 1.

    Raises:
        UsageError: if there are none.

    Yields:
        The machine's ``MatrixSpeed`` first, then one ``Speed`` per operation and precision.
    """
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    recipe, flat = measured.recipe, measured.build("meta")
    runtimes = [runtime_of(evolve(measured.config, precision=p)) for p in precisions]
    peak = matrix_speed(runtimes[0].device, size=timing.PEAK_SIZE)
    yield peak
    for runtime in runtimes:
        best = getattr(peak, runtime.precision) * 1e12 / 2
        model = measured.build(runtime.device).eval()
        number = batch_size(recipe.stages[0], recipe)
        given = _given(measured, number, runtime.device)
        with torch.no_grad(), runtime.autocast(), PeakMemory(runtime) as memory:
            seconds = timed(lambda: model.velocity(*given), repeats, runtime)  # noqa: B023  # called at once
        with torch.no_grad():
            cost = multiply_adds(lambda: flat.velocity(*_given(measured, number, "meta")))  # noqa: B023  # called at once
        yield _speed("sampling step", runtime, number, seconds, cost, best, memory)
        for stage in recipe.stages:
            number = batch_size(stage, recipe)
            task = GeneratorTask(model)
            data = SyntheticLatents(
                measured.facts.shape, num_classes=measured.facts.num_classes, count=number
            )
            with PeakMemory(runtime) as memory:
                seconds = step_seconds(task, stage, recipe, data, runtime, repeats)
            apply_stage(flat.roles, stage.train)
            cost = multiply_adds(lambda: _learn(flat, _given(measured, number, "meta")))  # noqa: B023  # called at once
            yield _speed(f"stage {stage.name}", runtime, number, seconds, cost, best, memory)


def _given(
    measured: Measured, number: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noised latents, times and labels."""
    latents = torch.randn(number, *measured.facts.shape, device=device)
    labels = torch.full((number,), measured.facts.num_classes, device=device)
    return latents, torch.rand(number, device=device), labels


def _learn(model: LatentGenerator, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Forward and backward pass."""
    torch.autograd.backward(model.velocity(*given).sum())


def _speed(
    operation: str, runtime: Runtime, number: int, seconds: float, cost: float, best: float,
    memory: PeakMemory,
) -> Speed:  # fmt: skip
    return Speed(
        operation=operation, precision=runtime.precision, images_per_second=number / seconds,
        multiply_adds=cost / number, peak_share=cost / seconds / best, memory=memory.bytes,
    )  # fmt: skip

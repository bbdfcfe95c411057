"""A generator's run, from config to summary."""

from rpiae.runs.generating.planning import GeneratorPlan, plan_generator
from rpiae.runs.generating.resolving import ResolvedGenerator, resolve_generator
from rpiae.runs.generating.running import resume_generator, resumed_generator, run_generator

__all__ = [
    "GeneratorPlan",
    "ResolvedGenerator",
    "plan_generator",
    "resolve_generator",
    "resume_generator",
    "resumed_generator",
    "run_generator",
]

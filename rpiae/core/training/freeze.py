"""Roles and patterns to trained and frozen parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen
from torch import nn

from rpiae.core.errors import ConfigError, did_you_mean


@frozen(kw_only=True)
class RoleReport:
    """What a stage does with one role's parameters (counts of numbers)."""

    trained: int
    frozen: int


@frozen(kw_only=True)
class FreezeReport:
    """What ``apply_stage`` did, by role.

    Attributes:
        roles: per role, how many numbers are trained and frozen.
    """

    roles: Mapping[str, RoleReport]

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return sum(role.trained for role in self.roles.values())

    @property
    def skipped(self) -> bool:
        """Whether nothing is left to train, so that the stage is skipped."""
        return self.trained == 0


def apply_stage(roles: Mapping[str, nn.Module], train: Sequence[str]) -> FreezeReport:
    """Set requires_grad and train/eval mode of every role for a stage; idempotent.

    Args:
        roles: role name → module.
        train: role names, or patterns on role-prefixed parameter names.

    Returns:
        What is trained and what is frozen. A role without parameters trains nothing.

    Raises:
        ConfigError: if a pattern matches no parameter.
    """
    names = [f"{role}.{name}" for role, module in roles.items() for name, _ in _parameters(module)]
    problems = []
    for position, pattern in enumerate(train):
        if pattern in roles or any(_matches(name, pattern) for name in names):
            continue
        prefixes = {f"{role}.*" for role in roles} | {_parent(name) for name in names}
        hint = did_you_mean(pattern, prefixes).strip()
        problems.append(f"train[{position}]: {pattern!r} matches no parameter. {hint}".rstrip())
    if problems:
        raise ConfigError("the stage", problems)
    reports = {}
    for role, module in roles.items():
        counts = {True: 0, False: 0}
        for name, parameter in _parameters(module):
            wanted = any(_matches(f"{role}.{name}", pattern) for pattern in train)
            parameter.requires_grad_(wanted)
            counts[wanted] += parameter.numel()
        reports[role] = RoleReport(trained=counts[True], frozen=counts[False])
    report = FreezeReport(roles=reports)
    set_modes(roles, report)
    return report


def set_modes(roles: Mapping[str, nn.Module], report: FreezeReport) -> None:
    """Have the roles with something to train in train mode and the others in eval mode."""
    for role, module in roles.items():
        module.train(report.roles[role].trained > 0)


def trained_parameters(roles: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Role-prefixed names and parameters that require gradients, in a fixed order."""
    for role, module in roles.items():
        for name, parameter in _parameters(module):
            if parameter.requires_grad:
                yield f"{role}.{name}", parameter


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters()


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def _parent(name: str) -> str:
    return f"{name.rpartition('.')[0]}.*"

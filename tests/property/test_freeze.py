"""What a stage freezes stays as it was to the bit, and what it trains moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rpiae.bridges.identity import IdentityBridge
from rpiae.bridges.variational import VariationalBridge
from rpiae.core.errors import ConfigError
from rpiae.core.training.freeze import FreezeReport, apply_stage, trained_parameters
from rpiae.decoders.vit import VitDecoder
from rpiae.encoders.vit import VitEncoder

ROLES = ("encoder", "bridge", "decoder")


def _toy() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        roles: dict[str, nn.Module] = {
            "encoder": VitEncoder(
                width=8, depth=2, num_heads=2, mlp_ratio=1, patch=4, native_grid=2, stem="patch"
            ),
            "bridge": VariationalBridge(features=8, latent_channels=2, decoder_layers=1),
            "decoder": VitDecoder(features=8, patch=4, width=8, depth=2, num_heads=2, mlp_hidden=8),
        }
        for module in roles.values():
            for parameter in module.parameters():
                # The bridge begins with zeros that keep gradients from what lies behind them.
                nn.init.normal_(parameter, std=0.3)
    return roles


NAMES = [
    f"{role}.{name}" for role, module in _toy().items() for name, _ in module.named_parameters()
]


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, frozenset[str]]:
    """A role, a parameter, a module or a shell pattern, and the parameters it stands for."""
    name = draw(st.sampled_from(NAMES))
    steps = name.split(".")
    kind = draw(st.sampled_from(["role", "parameter", "module", "below", "suffix"]))
    if kind == "parameter":
        return name, frozenset({name})
    if kind == "suffix":
        ending = f".{steps[-1]}"
        wanted = {n for n in NAMES if n.startswith(f"{steps[0]}.") and n.endswith(ending)}
        return f"{steps[0]}*{ending}", frozenset(wanted)
    length = 1 if kind == "role" else draw(st.integers(1, len(steps) - 1))
    prefix = ".".join(steps[:length])
    wanted = {n for n in NAMES if n.startswith(f"{prefix}.")}
    return f"{prefix}.*" if kind == "below" else prefix, frozenset(wanted)


stages = st.lists(patterns(), max_size=3)


def _losses(roles: dict[str, nn.Module]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 8, 8, generator=generator)
    bridge = roles["bridge"]
    assert isinstance(bridge, VariationalBridge)
    posterior = bridge.encode(roles["encoder"](images))
    pixels = roles["decoder"](bridge.decode(posterior.sample(torch.ones(2, 2, 1, 2, 2))))
    loss: Tensor = (pixels[:, :, 0] - images).square().mean() + posterior.kl()
    return loss


def _state(roles: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{role}.{name}": value.clone()
        for role, module in roles.items()
        for name, value in module.state_dict().items()
    }


def _setting(roles: dict[str, nn.Module]) -> tuple[dict[str, bool], dict[str, bool]]:
    gradients = {
        f"{role}.{name}": p.requires_grad
        for role, module in roles.items()
        for name, p in module.named_parameters()
    }
    modes = {
        f"{role}.{name}": child.training
        for role, module in roles.items()
        for name, child in module.named_modules()
    }
    return gradients, modes


@given(stages)
def test_frozen_stays_to_the_bit_and_trained_moves(
    train: list[tuple[str, frozenset[str]]],
) -> None:
    roles = _toy()
    wanted = frozenset[str]().union(*(names for _, names in train))
    report = apply_stage(roles, [pattern for pattern, _ in train])
    trained = dict(trained_parameters(roles))
    assert set(trained) == wanted
    assert report.trained == sum(p.numel() for p in trained.values())
    assert report.skipped is (not wanted)
    before = _state(roles)
    if wanted:
        optimiser = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
        _losses(roles).backward()
        optimiser.step()
    after = _state(roles)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == wanted
    for role, module in roles.items():
        assert module.training is any(name.startswith(f"{role}.") for name in wanted)


@given(stages, stages)
def test_a_stage_depends_on_nothing_before_it(
    earlier: list[tuple[str, frozenset[str]]], later: list[tuple[str, frozenset[str]]]
) -> None:
    def apply(roles: dict[str, nn.Module], train: list[tuple[str, frozenset[str]]]) -> FreezeReport:
        return apply_stage(roles, [pattern for pattern, _ in train])

    fresh, used = _toy(), _toy()
    wanted = apply(fresh, later)
    apply(used, earlier)
    assert apply(used, later) == wanted
    assert _setting(used) == _setting(fresh)
    assert apply(used, later) == wanted
    assert _setting(used) == _setting(fresh)


@given(stages)
def test_every_number_is_counted_once(train: list[tuple[str, frozenset[str]]]) -> None:
    roles = _toy()
    report = apply_stage(roles, [pattern for pattern, _ in train])
    assert tuple(report.roles) == ROLES
    for role, counts in report.roles.items():
        assert counts.trained + counts.frozen == sum(p.numel() for p in roles[role].parameters())


@given(stages, st.sampled_from(ROLES), st.text("abcxyz", min_size=4, max_size=8))
def test_a_pattern_that_matches_nothing_changes_nothing(
    train: list[tuple[str, frozenset[str]]], role: str, made_up: str
) -> None:
    roles = _toy()
    before = _setting(roles)
    missing = f"{role}.{made_up}.*"
    with pytest.raises(ConfigError) as caught:
        apply_stage(roles, [*(pattern for pattern, _ in train), missing])
    (problem,) = caught.value.problems
    assert problem.startswith(f"train[{len(train)}]: {missing!r} matches no parameter")
    assert _setting(roles) == before


def test_a_near_miss_is_answered_with_the_pattern_meant() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'decoder\.\*'"):
        apply_stage(_toy(), ["decodr.*"])


def test_a_role_without_parameters_is_skipped() -> None:
    report = apply_stage({"bridge": IdentityBridge(features=8)}, ["bridge"])
    assert report.skipped
    assert report.roles["bridge"].frozen == 0

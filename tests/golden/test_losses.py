"""Losses, schedules, moving average, optimiser and adaptive weights against the reference.

The file has no noise floor of its own. Scalars are reductions of at most a few thousand fp32
elements, for which a relative 1e-6 is a few rounding steps; schedules are float64 on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import evolve
from torch import Tensor, nn

from rpiae.bridges.posterior import LOGVAR_RANGE, DiagonalGaussian
from rpiae.core.config.recipe import AdaptiveConfig, OptimiserConfig, StageLength, TermConfig
from rpiae.core.model.contracts import BlockFeatures, Features, StepContext
from rpiae.core.model.geometry import map_grid, map_to_tokens, to_8_bits
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.training.balance import Balance, Layer, Meeting, Meetings, Pass, Value
from rpiae.core.training.ema import Ema
from rpiae.core.training.objective import Objective
from rpiae.core.training.player import Player
from rpiae.core.training.schedules import learning_rate
from rpiae.losses.adversarial import AdversarialLoss
from rpiae.losses.configs import FeatureLossConfig, KlLossConfig, L1LossConfig, PivotLossConfig

if TYPE_CHECKING:
    from tests.golden.conftest import Golden, Load

RELATIVE = 1e-6
LENGTH = StageLength(steps=160, warmup=10, decay=160, scale=1.0, steps_per_epoch=10)


@pytest.fixture
def losses(golden: Load) -> Golden:
    return golden("losses")


class StoredReplica:
    """A replica that answers with stored tokens."""

    num_blocks = 1

    def __init__(self, tokens: Tensor, grid: tuple[int, int, int]) -> None:
        self._features = Features(tokens, grid)

    def features(self, images: Tensor) -> Features:
        return self._features

    def blocks(self, images: Tensor, indices: Any) -> BlockFeatures:
        return BlockFeatures([self._features.tokens for _ in indices], self._features.grid)


def _features(feature_map: Tensor) -> Features:
    return Features(map_to_tokens(feature_map), map_grid(feature_map))


def _context(**given: Any) -> StepContext:
    empty = dict.fromkeys(StepContext._fields)
    return StepContext(**(empty | given))


def _close(actual: Tensor, expected: Tensor, relative: float = RELATIVE) -> None:
    torch.testing.assert_close(actual, expected, rtol=relative, atol=0)


def test_pivot_loss(losses: Golden) -> None:
    anchor = _features(losses.inputs["piv/teacher"])
    context = _context(
        images=torch.zeros(2, 3, 4, 4),
        features=_features(losses.inputs["piv/student"]),
        replica=StoredReplica(*anchor),
    )
    loss = PivotLossConfig(name="pivot").build()(context)
    _close(loss, losses.expected["piv/loss"])


def test_kl_is_the_mean_without_the_half(losses: Golden) -> None:
    mean, logvar = losses.inputs["kl/moments"].chunk(2, dim=1)
    posterior = DiagonalGaussian(mean, logvar)
    _close(posterior.kl(), losses.expected["kl/mean"])
    per_sample = torch.stack(
        [DiagonalGaussian(m, lv).kl() for m, lv in zip(mean, logvar, strict=True)]
    )
    _close(per_sample, 2 * losses.expected["kl/sum_half"] / mean[0].numel())
    std = DiagonalGaussian(torch.zeros_like(mean), logvar).sample(torch.ones_like(mean))
    _close(std, losses.expected["kl/std"])


def test_kl_map_element_by_element(losses: Golden) -> None:
    mean, logvar = (m.flatten() for m in losses.inputs["kl/moments"].chunk(2, dim=1))
    elements = torch.stack(
        [DiagonalGaussian(m, lv).kl() for m, lv in zip(mean, logvar, strict=True)]
    )
    # mean² + var − 1 − logvar cancels where the posterior is near the prior.
    torch.testing.assert_close(
        elements, losses.expected["kl/map"].flatten(), rtol=RELATIVE, atol=2e-7
    )


def test_extreme_log_variances_are_clamped(losses: Golden) -> None:
    mean, logvar = losses.inputs["kl/moments_extreme"].chunk(2, dim=1)
    assert logvar.min() < LOGVAR_RANGE[0]
    assert logvar.max() > LOGVAR_RANGE[1]
    posterior = DiagonalGaussian(mean, logvar)
    assert torch.equal(posterior.logvar, losses.expected["kl/extreme_logvar"])
    std = DiagonalGaussian(torch.zeros_like(mean), logvar).sample(torch.ones_like(mean))
    _close(std, losses.expected["kl/extreme_std"])
    assert posterior.kl().isfinite()


def test_stage_two_total(losses: Golden) -> None:
    mean, logvar = losses.inputs["kl/moments"].chunk(2, dim=1)
    context = _context(
        images=losses.inputs["stage2/images"],
        features=_features(losses.inputs["stage2/z_target"]),
        posterior=DiagonalGaussian(mean, logvar),
        decoded_features=_features(losses.inputs["stage2/vb_dec"]),
        reconstruction=losses.inputs["stage2/recon"],
    )
    objective = Objective(
        [
            TermConfig(loss=FeatureLossConfig(name="feature"), weight=1.0),
            TermConfig(loss=KlLossConfig(name="kl"), weight=1e-3),
            TermConfig(loss=L1LossConfig(name="l1"), weight=0.05),
        ],
        length=LENGTH,
        layers={},
    )
    values = {value.label: value for value in objective(context, step=0)}
    _close(values["feature"].value, losses.expected["stage2/feat_mse"])
    _close(values["kl"].value, losses.expected["stage2/kl_mean"])
    _close(values["l1"].value, losses.expected["stage2/rec_l1"])
    weights = Balance().backward(Pass(values=tuple(values.values())), share=1.0, weigh=True)
    total = torch.stack([weights[label] * value.value for label, value in values.items()]).sum()
    _close(total, losses.expected["stage2/total"])


@pytest.mark.parametrize(
    ("curve", "options"),
    [
        ("cosine", {}),
        ("linear", {"shape": "linear"}),
        ("cosine_warmup_const", {"warmup_from_zero": False}),
    ],
)
def test_learning_rate(losses: Golden, curve: str, options: dict[str, Any]) -> None:
    wanted = losses.facts["lr"]["float64_values"][curve]
    assert len(wanted) == losses.facts["lr"]["n"]
    found = [
        learning_rate(step, base=2e-4, final=2e-5, warmup_steps=10, decay_steps=160, **options)
        for step in range(len(wanted))
    ]
    assert found == pytest.approx(wanted, rel=1e-12, abs=0)


def test_moving_average_after_its_warm_up(losses: Golden) -> None:
    names = ("weight", "bias")
    parameters = [(n, nn.Parameter(losses.inputs[f"ema/model.{n}"].clone())) for n in names]
    ema = Ema(parameters, decay=0.9978)
    before = {n: losses.inputs[f"ema/before.{n}"] for n in names}
    # At this step the warm-up, (1 + n) / (10 + n), has passed the final decay.
    ema.load_state_dict({"values": before, "step": 10**6})
    ema.update()
    for name in names:
        # lerp and two products round differently, by one unit of the largest value.
        torch.testing.assert_close(
            ema.values[name], losses.expected[f"ema/after.{name}"], rtol=0, atol=2.5e-7
        )


def test_two_optimiser_steps(losses: Golden) -> None:
    parameter = nn.Parameter(losses.inputs["adamw/param"].clone())
    optimiser = Player(
        name="one", module=nn.ParameterDict({"weight": parameter}), parameters={"weight": parameter},
        config=OptimiserConfig(), length=LENGTH, modes=lambda: None,
    ).optimiser  # fmt: skip
    for step in range(2):
        parameter.grad = losses.inputs[f"adamw/grad{step}"].clone()
        optimiser.step()
    torch.testing.assert_close(
        parameter.detach(), losses.expected["adamw/param_after2"], rtol=0, atol=2.5e-7
    )


class TinyAutoencoder(nn.Module):
    """The network that the golden's adaptive weights were computed on."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Linear(6, 10), nn.Linear(10, 8)
        self.dec1, self.dec2 = nn.Linear(8, 10), nn.Linear(10, 12)
        self.disc = nn.Linear(12, 1)

    @property
    def last_weight(self) -> nn.Parameter:
        weight = self.dec2.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def losses(
        self, x: Tensor, target: Tensor, anchor: Tensor
    ) -> tuple[Meetings, Tensor, Tensor, Tensor]:
        """Reconstruction, pivot and critic terms, and where their ways meet."""
        first = Meeting.at(self.enc2(self.enc1(x).tanh()))
        last = Meeting.at(self.dec2(self.dec1(first.cut).tanh()))
        z, y = first.cut, last.cut
        terms = (y - target).abs().mean(), (z - anchor).square().mean(), -self.disc(y).mean()
        return Meetings(first, last), *terms


@pytest.fixture
def adaptive(losses: Golden) -> Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]:
    network = TinyAutoencoder()
    network.load_state_dict(
        {name.removeprefix("adaptive_net."): value for name, value in losses.state.items()}
    )
    layers = {
        "encoder": Layer(meeting="first", weight=network.enc2.weight),
        "encoder-last": Layer(meeting="first", weight=network.enc2.bias),
        "decoder": Layer(meeting="last", weight=network.last_weight),
    }
    inputs = [losses.inputs[f"adaptive/{name}"] for name in ("x", "target", "teacher")]

    def weighed(**settings: AdaptiveConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms, and their weights."""
        meetings, rec, piv, gan = network.losses(*inputs)
        values = (
            Value(label="rec", value=rec, reference=True, entry="last"),
            Value(label="piv", value=piv, weight=0.75, adaptive=settings.get("piv"), entry="first"),
            Value(label="gan", value=gan, weight=0.75, adaptive=settings.get("gan"), entry="last"),
        )
        passed = Pass(values=values, meetings=meetings)
        weights = Balance(layers).backward(passed, share=1.0, weigh=True)
        return {v.label: v.value.detach() for v in values}, weights

    return weighed


AT_WEIGHT = AdaptiveConfig(layer="encoder", eps=1e-4, maximum=1e5)
CRITIC = AdaptiveConfig(layer="decoder", eps=1e-6, maximum=1e4)


def test_adaptive_pivot_weight(losses: Golden, adaptive: Any) -> None:
    values, weights = adaptive(piv=AT_WEIGHT)
    _close(values["rec"], losses.expected["adaptive/recon_loss"])
    _close(values["piv"], losses.expected["adaptive/piv_loss"])
    _close(weights["piv"], losses.expected["adaptive/piv_weight"])
    _, at_bias = adaptive(piv=evolve(AT_WEIGHT, layer="encoder-last"))
    _close(at_bias["piv"], losses.expected["adaptive/piv_weight_bias_layer"])
    _, clamped = adaptive(piv=evolve(AT_WEIGHT, maximum=0.01))
    _close(clamped["piv"], losses.expected["adaptive/piv_weight_clamped"])
    assert not weights["piv"].requires_grad


def test_adaptive_weight_of_a_disconnected_layer_is_zero(losses: Golden, adaptive: Any) -> None:
    _, weights = adaptive(piv=evolve(AT_WEIGHT, layer="decoder"))
    assert torch.equal(weights["piv"], losses.expected["adaptive/piv_weight_disconnected"])


def test_adaptive_critic_weight_and_total(losses: Golden, adaptive: Any) -> None:
    values, weights = adaptive(piv=AT_WEIGHT, gan=CRITIC)
    _close(values["gan"], losses.expected["adaptive/gan_loss"])
    _close(weights["gan"] / 0.75, losses.expected["adaptive/gan_weight"])
    _, clamped = adaptive(gan=evolve(CRITIC, maximum=0.05))
    _close(clamped["gan"] / 0.75, losses.expected["adaptive/gan_weight_clamped"])
    total = torch.stack([weights[label] * value for label, value in values.items()]).sum()
    _close(total, losses.expected["adaptive/total"])


def test_both_sides_of_the_game(losses: Golden) -> None:
    real, made = losses.inputs["gan/logits_real"], losses.inputs["gan/logits_fake"]
    hinge = AdversarialLoss(objective="hinge", augment=())
    _close(hinge.critic_loss(real, made), losses.expected["gan/hinge_d"])
    other = AdversarialLoss(objective="non-saturating", augment=())
    _close(other.critic_loss(real, made), losses.expected["gan/vanilla_d"])
    context = _context(
        reconstruction=torch.zeros(3, 3, 4, 4),
        images=torch.zeros(3, 3, 4, 4),
        critic=lambda _: made,
        draws=StepRandomness(0, "stage", 0, (0, 1, 2)),
    )
    _close(hinge(context), losses.expected["gan/vanilla_g"])


def test_the_critic_sees_to_8_bits(losses: Golden) -> None:
    made = (losses.inputs["disc/fake_normed"] + 1) / 2
    wanted = (losses.expected["disc/fake_discretised"] + 1) / 2
    torch.testing.assert_close(to_8_bits(made), wanted, rtol=0, atol=1.2e-7)

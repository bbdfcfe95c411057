"""The flow that generators learn, against the reference: shift, path, loss, draws and training steps."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from rpiae.core.config.convert import parse
from rpiae.core.config.generation import FlowConfig
from rpiae.core.config.recipe import OptimiserConfig, StageConfig, StageLength, stage_length
from rpiae.core.model.generation import FlowContext
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.core.model.naming import converter
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.draws import SampleDraws, StepRandomness
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.balance import Pass, Value
from rpiae.core.training.ema import Ema
from rpiae.core.training.player import MicroBatch, Player
from rpiae.losses.flow import FlowLoss
from rpiae.recipes.configs import GeneratorRecipeConfig
from rpiae.tasks.generator.flow import drawn_times, flow_at
from tests.golden.conftest import Golden, Load
from tests.golden.test_generators import loaded

TOLERANCE = 1e-5


def model_of(golden: Load, shape: tuple[int, int, int], **flow: float) -> LatentGenerator:
    return LatentGenerator(
        generator=loaded(golden("generator_lightningdit").state),
        flow=FlowConfig(**flow),  # type: ignore[arg-type]  # numbers alone
        facts=LatentFacts(shape=shape, tokenizer="", tokenizer_sha256="", num_classes=10),
    )


def context_of(model: LatentGenerator, transport: Golden, time: Tensor) -> FlowContext:
    inputs = transport.inputs
    return flow_at(
        model, inputs["x1"], inputs["y"], noise=inputs["x0"], time=time,
        draws=StepRandomness(0, "flow", 0, range(4)),
    )  # fmt: skip


def test_times_are_shifted(golden: Load) -> None:
    transport = golden("transport")
    sizes, table = transport.facts["time_shift"]["latent_sizes"], transport.expected["shift_table"]
    shifts = transport.facts["time_shift"]["shifts"]
    for (c, h, w), shift, row in zip(sizes, shifts, table, strict=True):
        stand_in = nn.Linear(1, 1)
        stand_in.latent_channels, stand_in.num_classes, stand_in.patch = c, 0, (1, 1)
        model = LatentGenerator(
            generator=stand_in, flow=FlowConfig(),
            facts=LatentFacts(shape=(c, h, w), tokenizer="", tokenizer_sha256=""),
        )  # fmt: skip
        assert model.shift == pytest.approx(shift, rel=1e-12)
        torch.testing.assert_close(
            model.shifted(transport.inputs["shift_t"]), row, rtol=0, atol=TOLERANCE
        )
        assert float(model.shifted(torch.tensor(0.5))) == pytest.approx(shift / (1 + shift))
    assert FlowConfig(shift=3.0).shift_of(1) == 3.0


def test_path_velocity_and_loss(golden: Load) -> None:
    transport = golden("transport")
    model = model_of(golden, (8, 6, 6))
    with torch.no_grad():
        context = context_of(model, transport, transport.inputs["t"])
    expected = transport.expected
    torch.testing.assert_close(context.noised, expected["xt"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(context.velocity, expected["ut"], rtol=0, atol=TOLERANCE)
    each = (context.predicted - context.velocity).square().flatten(1).mean(1)
    torch.testing.assert_close(each, expected["loss_velocity"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        FlowLoss()(context), expected["loss_velocity"].mean(), rtol=0, atol=TOLERANCE
    )


def test_draws_are_distributed_as_in_the_reference(golden: Load) -> None:
    for case in golden("transport").facts["t_distribution"]["cases"]:
        kind, *numbers = case["time_dist_type"].split("_")
        mean, std = map(float, numbers) if numbers else (0.0, 1.0)
        flow = FlowConfig(times=kind, mean=mean, std=std)
        drawn = drawn_times(flow, SampleDraws(0, ("t",), range(20_000)), "cpu")
        shift = case["time_dist_shift"]
        shifted = (shift * drawn / (1 + (shift - 1) * drawn)).double()
        levels = torch.tensor(case["quantile_levels"], dtype=torch.float64)
        wanted = torch.tensor(case["analytic_quantiles"], dtype=torch.float64)
        below = (shifted[:, None] <= wanted).double().mean(0)
        # Kolmogorov and Smirnov's bound, which one draw in a thousand exceeds.
        assert (below - levels).abs().max() < 1.95 / len(drawn) ** 0.5, case["time_dist_type"]


class Steps(nn.Module):
    """The reference's training steps: given times, one batch, no label dropout."""

    def __init__(self, model: LatentGenerator, transport: Golden) -> None:
        super().__init__()
        self.model = model
        self._held = (transport,)

    def forward(self, step: int, batch: MicroBatch) -> Pass:
        transport = self._held[0]
        context = context_of(self.model, transport, transport.inputs["train_t"][step])
        value = FlowLoss()(context)
        return Pass(values=(Value(label="flow", value=value, weight=1.0),))


def test_training_steps(golden: Load) -> None:
    """Three steps: AdamW 2e-4 (0.9, 0.95), clip 1, EMA 0.9995, positions and frequencies trained too."""
    transport = golden("transport")
    model = model_of(golden, (8, 6, 6))
    generator = model.roles["generator"].eval()
    generator.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    trained = dict(generator.named_parameters())
    ema = Ema(trained.items(), decay=0.9995, warmup=False)
    player = Player(
        name="model", module=Steps(model, transport),
        parameters={f"generator.{name}": p for name, p in trained.items()},
        config=OptimiserConfig(
            learning_rate=2e-4, shape="constant", betas=(0.9, 0.95), eps=1e-8, clip=1.0
        ),
        length=StageLength(steps=3, warmup=0, decay=3, scale=1.0, steps_per_epoch=3), ema=ema,
        modes=lambda: None,
    )  # fmt: skip
    runtime = Runtime(device="cpu", precision="fp32")
    losses, norms = [], []
    for step in range(3):
        batch = MicroBatch(transport.inputs["x1"], StepRandomness(0, "flow", step, range(4)), 1.0)
        learned = player.learn(step, [batch], runtime)
        losses.append(learned.terms["flow"])
        norms.append(learned.gradient_norms["generator"])
    expected = transport.expected
    torch.testing.assert_close(torch.stack(losses), expected["train_losses"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.stack(norms), expected["train_grad_norms"], rtol=1e-4, atol=1e-4
    )
    _check_moved(before, trained, expected["train_delta_norms"], transport)
    _check_moved(before, ema.values, expected["train_ema_delta_norms"], transport)


def _check_moved(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], wanted: Tensor, transport: Golden
) -> None:
    """All that was trained has moved as far as in the reference, names aside."""
    found = sorted(float((after[n].detach() - t).norm()) for n, t in before.items())
    torch.testing.assert_close(
        torch.tensor(found), wanted.sort().values, rtol=2e-3, atol=1e-6
    )  # fmt: skip
    assert len(found) == len(transport.facts["parameter_names"])


def test_the_released_schedule(golden: Load) -> None:
    """Recipe lightningdit over ImageNet: constant to epoch 40, linear to epoch 800."""
    schedule = golden("transport").facts["lr_schedule"]
    tree = registry("recipes").select("lightningdit").tree
    recipe = parse(tree, GeneratorRecipeConfig, source="recipe", converter=converter())
    [stage] = recipe.stages
    assert isinstance(stage, StageConfig)
    length = stage_length(stage, recipe, 1_281_167)
    assert length.steps_per_epoch == schedule["steps_per_epoch"]
    player = Player(
        name="model", module=nn.Linear(1, 1), parameters=dict(nn.Linear(1, 1).named_parameters()),
        config=stage.optimiser, length=length, modes=lambda: None,
    )  # fmt: skip
    for epoch, rate in schedule["epoch_and_lr"]:
        assert player.learning_rate(epoch * length.steps_per_epoch) == pytest.approx(rate, rel=1e-9)
    assert (stage.ema, stage.ema_warmup, stage.batch_size) == (0.9995, False, 1024)
    assert (stage.optimiser.clip, recipe.flow.normalisation) == (1.0, "none")

"""The critic: what it learns, what its gradient reaches, and that a run resumes to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rpiae import runs
from rpiae.core.config.parts import CriticConfig
from rpiae.core.errors import ConfigError, FetchError, UsageError
from rpiae.core.model.geometry import to_8_bits
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.training import events
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.losses.adversarial import AdversarialLoss, cut_out, jittered, translated
from rpiae.losses.critics import DinoCritic, PatchCritic
from tests.toys import CRITICS, ENCODERS, toy_run


def dino(**changes: Any) -> DinoCritic:
    torch.manual_seed(0)
    config = part_config("critics", CRITICS["dino"] | changes)
    built = config.build()
    assert isinstance(built, DinoCritic)
    return built


def gan_run(folder: Path, critic: dict[str, Any], *overrides: str, **loss: Any) -> TrainerInputs:
    """One stage that trains a toy decoder against a critic."""
    term = {"loss": {"name": "adversarial", "critic": critic, **loss}, "weight": 0.75}
    stage = {
        "name": "polish", "train": ["decoder"], "steps": 6, "batch_size": 4, "noise": 0.3,
        "optimiser": {"learning_rate": 1e-3, "warmup_steps": 2},
        "terms": [
            {"loss": "l1", "reference": True},
            term | {"start_steps": 3, "adaptive": {"layer": "decoder", "eps": 1e-6}},
        ],
    }  # fmt: skip
    return toy_run(
        folder, "vit", "vb4", "vit", {"name": "gan", "stages": [stage]}, *overrides
    )  # fmt: skip


def steps_of(inputs: TrainerInputs, *, resume: bool = False) -> list[events.StepDone]:
    return [e for e in train(inputs, resume=resume) if isinstance(e, events.StepDone)]


def test_heads_of_the_papers_critic() -> None:
    config = part_config("critics", "dino-s8")
    assert isinstance(config, CriticConfig)
    with torch.device("meta"):
        critic = config.build()
    assert isinstance(critic, DinoCritic)
    assert len(critic.heads) == 5
    assert critic.backbone.width == 384
    assert critic.backbone.patch == (1, 8, 8)
    activation = critic.backbone.network.blocks[0].mlp.act
    x = torch.linspace(-3, 3, 20)
    torch.testing.assert_close(activation(x), torch.nn.functional.gelu(x, approximate="tanh"))
    for head in critic.heads:
        kernels = [m.kernel_size[0] for m in head.modules() if isinstance(m, torch.nn.Conv1d)]
        assert kernels == [1, 9, 1]
        norms = [m for m in head.modules() if isinstance(m, torch.nn.InstanceNorm1d)]
        assert [n.eps for n in norms] == [1e-6, 1e-6]
        assert not any(n.track_running_stats for n in norms)
        assert all(
            torch.nn.utils.parametrize.is_parametrized(m, "weight")
            for m in head.modules()
            if isinstance(m, torch.nn.Conv1d)
        )
    assert not any(p.requires_grad for p in critic.backbone.parameters())
    assert all(p.requires_grad for p in critic.heads.parameters())


def test_a_head_is_what_the_method_says() -> None:
    critic = dino().eval()
    head: Any = critic.heads[0]
    tokens = torch.randn(2, 7, 32)

    def block(layers: Any, x: Tensor) -> Tensor:
        convolution, norm = layers[0], layers[1]
        reach = convolution.kernel_size[0] // 2
        around = torch.cat([x[..., -reach:], x, x[..., :reach]], dim=-1) if reach else x
        x = torch.nn.functional.conv1d(around, convolution.weight, convolution.bias)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        x = x * norm.weight[:, None] + norm.bias[:, None]
        return torch.where(x > 0, x, 0.2 * x)

    x = block(head.first, tokens.mT)
    x = (x + block(head.residual, x)) / 2**0.5
    wanted = torch.nn.functional.conv1d(x, head.last.weight, head.last.bias)[:, 0]
    torch.testing.assert_close(head(tokens), wanted, rtol=1e-4, atol=1e-5)


def test_spectral_norm_settles_on_the_largest_singular_value() -> None:
    critic = dino().train()
    head: Any = critic.heads[0]
    tokens = torch.randn(2, 7, 32)
    for _ in range(60):
        head(tokens)
    weight = head.residual[0].weight.flatten(1)
    assert torch.linalg.svdvals(weight)[0].item() == pytest.approx(1, abs=0.02)


def test_the_last_block_is_read_twice_where_it_is_named() -> None:
    critic = dino(layers=[0, 2]).eval()
    critic.heads[2].load_state_dict(critic.heads[0].state_dict())
    logits = critic(torch.rand(1, 3, 32, 32)).view(3, -1)
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])


def test_a_layer_that_the_backbone_lacks() -> None:
    with pytest.raises(UsageError, match=r"has blocks 0 to 2, not 5"):
        part_config("critics", {"name": "dino", "backbone": ENCODERS["vit"] | {"depth": 3}}).build()


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS)
def test_the_gradient_reaches_only_what_it_should(tmp_path: Path, critic: dict[str, Any]) -> None:
    inputs = gan_run(tmp_path, critic)
    before = {name: value.clone() for name, value in inputs.task.model.state_dict().items()}
    seen = steps_of(inputs)
    after = inputs.task.model.state_dict()
    moved = {n.partition(".")[0] for n in after if not torch.equal(after[n], before[n])}
    assert moved == {"decoder"}
    assert [sorted(e.terms) for e in seen] == [["l1"]] * 3 + [["adversarial", "l1"]] * 3
    assert all(e.others for e in seen)
    state = torch.load(
        next(tmp_path.glob("checkpoints/*.pt")), weights_only=True, map_location="cpu"
    )
    assert "players" not in state, "what the next stage takes over has no critic"


def test_the_critic_learns_and_its_backbone_stays(tmp_path: Path) -> None:
    inputs = gan_run(tmp_path, CRITICS["dino"], "recipe.checkpoint_every=1")
    states = []
    for event in train(inputs):
        if isinstance(event, events.CheckpointSaved):
            states.append(torch.load(event.path, weights_only=True)["players"]["critic"]["weights"])
    first, last = states[0], states[-1]
    changed = {n.split(".")[1] for n in first if not torch.equal(first[n], last[n])}
    assert changed == {"heads"}


def test_the_critics_rate_counts_its_own_steps(tmp_path: Path) -> None:
    seen = steps_of(gan_run(tmp_path, CRITICS["patch"], critic_start_steps=2))
    assert [bool(e.others) for e in seen] == [False, False, True, True, True, True]
    rates = [e.others["critic"]["learning_rate"] for e in seen if e.others]
    assert rates == [e.learning_rate for e in seen][: len(rates)]
    own = {"learning_rate": 5e-3, "final_learning_rate": 5e-3, "shape": "constant"}
    other = steps_of(gan_run(tmp_path / "own", CRITICS["patch"], optimiser=own))
    assert {e.others["critic"]["learning_rate"] for e in other} == {5e-3}


def test_clean_and_shared_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Tensor] = []
    real = AdversarialLoss.augmented

    def watched(self: Any, images: Tensor, draws: Any, purpose: str) -> Tensor:
        if purpose == "critic-made":
            shown.append(images)
        return real(self, images, draws, purpose)

    monkeypatch.setattr(AdversarialLoss, "augmented", watched)
    one = ("recipe.max_steps=1",)
    inputs = gan_run(tmp_path / "clean", CRITICS["patch"], *one, "recipe.stages[0].ema=0.0")
    list(train(inputs))
    images = inputs.data.images[:4]  # type: ignore[attr-defined]  # SyntheticImages
    with torch.no_grad():
        updated = inputs.task.model.eval().reconstruct(images)
    torch.testing.assert_close(shown[0], to_8_bits(updated), rtol=0, atol=1 / 255 + 1e-6)
    list(train(gan_run(tmp_path / "shared", CRITICS["patch"], *one, critic_input="shared")))
    assert (shown[1] - shown[0]).abs().max() > 0.01, "the shared one is noisy"


def test_resume_is_exact_with_a_critic(tmp_path: Path) -> None:
    def digests(happened: Any) -> dict[str, str]:
        return dict(next(e for e in happened if isinstance(e, events.StageEnded)).digests)

    whole = digests(train(gan_run(tmp_path / "whole", CRITICS["patch"])))
    half = gan_run(tmp_path / "half", CRITICS["patch"], "recipe.checkpoint_every=2")
    for event in (happened := train(half)):
        if isinstance(event, events.CheckpointSaved) and event.step == 4:
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    again = gan_run(tmp_path / "half", CRITICS["patch"], "recipe.checkpoint_every=2")
    assert digests(train(again, resume=True)) == whole
    assert set(whole) == {"weights", "ema", "optimiser", "critic"}


def test_accumulated_parts_teach_the_critic_what_a_whole_batch_does(tmp_path: Path) -> None:
    loss = {"augment": []}
    whole = steps_of(gan_run(tmp_path / "1", CRITICS["patch"], "recipe.max_steps=3", **loss))
    parts = steps_of(
        gan_run(
            tmp_path / "2", CRITICS["patch"], "recipe.max_steps=3", "recipe.accumulate=2", **loss
        )
    )
    # Steps of Adam are signs where gradients are near zero, and the critic sees 8-bit images: after the
    # first step a difference in the last bit of a gradient is one that is seen.
    for one, other, near in zip(whole, parts, (1e-6, 1e-2, 1e-2), strict=True):
        assert other.others["critic"] == pytest.approx(one.others["critic"], rel=near, abs=1e-6)
        assert other.weights == pytest.approx(one.weights, rel=1e-2)


def test_a_stage_has_one_critic() -> None:
    term = {"loss": {"name": "adversarial", "critic": "patch"}}
    stage = {"name": "a", "train": ["decoder"], "steps": 1, "terms": [term, term]}
    with pytest.raises(ConfigError, match="a stage has one critic"):
        runs.resolve({"recipe": {"name": "two", "stages": [stage]}})


def test_starts_in_two_units_are_both_told() -> None:
    term = {"loss": {"name": "adversarial", "critic": "patch", "critic_start_epochs": 2.0}}
    stage = {"name": "a", "train": ["decoder"], "steps": 10, "terms": [term | {"start_steps": 7}]}
    resolved = runs.resolve({"recipe": {"name": "mixed", "stages": [stage]}})
    assert "from step 7" in resolved.notices[0]
    assert "from epoch 2" in resolved.notices[0]


def test_a_model_that_sees_an_untaught_critic_is_told() -> None:
    term = {"loss": {"name": "adversarial", "critic": "patch", "critic_start_steps": 9}}
    stage = {"name": "a", "train": ["decoder"], "steps": 10, "terms": [term]}
    resolved = runs.resolve({"recipe": {"name": "early", "stages": [stage]}})
    assert "counts before its critic has begun to learn" in resolved.notices[0]


def test_what_the_terms_load_is_asked_for_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tree = {
        "encoder": ENCODERS["vit"], "decoder": "vit-t", "recipe": "vae", "data": "sample",
        "bridge": "identity", "out": str(tmp_path / "run"), "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    happened = runs.run(runs.resolve(tree))
    with pytest.raises(FetchError, match=r"loss 'lpips'.*rpiae fetch --config.*--without"):
        list(happened)
    assert not (tmp_path / "run" / runs.CONFIG_FILE).exists()


def test_augmentations_keep_the_range_of_positions_and_pass_gradients() -> None:
    images = torch.rand(3, 3, 16, 24, requires_grad=True)
    half = torch.full((3,), 0.5)
    torch.testing.assert_close(translated(images, half, half), images)
    torch.testing.assert_close(jittered(images, half, half, half), images)
    moved = translated(images, torch.zeros(3), torch.full((3,), 0.999))
    torch.testing.assert_close(moved[..., 2:, :-3], images[..., :-2, 3:])
    assert torch.equal(moved[..., :2, :], torch.full_like(moved[..., :2, :], 0.5))
    hidden = cut_out(images, half, half)
    assert (hidden == 0.5).all(1).sum().item() == 3 * 8 * 12
    loss = AdversarialLoss(objective="hinge", augment=("translation", "colour", "cutout"))
    draws = StepRandomness(0, "stage", 0, (0, 1, 2))
    shown = loss.augmented(images, draws, "here")
    assert torch.equal(shown, loss.augmented(images, draws, "here"))
    assert not torch.equal(shown, loss.augmented(images, draws, "there"))
    shown.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_whole_image_augmented_alone_is_the_same() -> None:
    loss = AdversarialLoss(objective="hinge", augment=("translation", "colour"))
    images = torch.rand(2, 3, 16, 16)
    both = loss.augmented(images, StepRandomness(0, "s", 0, (4, 5)), "p")
    second = loss.augmented(images[1:], StepRandomness(0, "s", 0, (5,)), "p")
    torch.testing.assert_close(both[1:], second)


@pytest.mark.parametrize("named", [("translation", "colour"), ("colour", "translation")])
def test_translation_comes_before_colour(named: tuple[Any, ...]) -> None:
    images = torch.rand(3, 3, 16, 24)
    draws = StepRandomness(0, "stage", 0, (0, 1, 2))
    b, s, c, down, right = (
        draws.uniform(f"p-{what}", "cpu")
        for what in ("brightness", "saturation", "contrast", "down", "right")
    )
    shown = AdversarialLoss(objective="hinge", augment=named).augmented(images, draws, "p")
    assert torch.equal(shown, jittered(translated(images, down, right), b, s, c))
    assert (shown - translated(jittered(images, b, s, c), down, right)).abs().max() > 0.05


def test_the_order_of_augmentations_is_that_of_the_reference() -> None:
    # Differentiable augmentation of arXiv 2006.10738 on [-1, 1], as the released code orders it.
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    x = 2 * images - 1
    moved = torch.zeros_like(x)
    moved[..., 1:, :-1] = x[..., :-1, 1:]
    x = moved + 0.3
    x = (x - x.mean(1, keepdim=True)) * 1.4 + x.mean(1, keepdim=True)
    wanted = (x - x.mean((1, 2, 3), keepdim=True)) * 0.8 + x.mean((1, 2, 3), keepdim=True)
    down, right, b, s, c = (torch.tensor([v]).double() for v in (0.1, 0.9, 0.8, 0.7, 0.3))
    found = jittered(translated(images, down, right), b, s, c)
    torch.testing.assert_close(2 * found - 1, wanted)


def test_patch_critic_sees_small_images() -> None:
    critic = PatchCritic(width=8, halvings=3)
    assert critic(torch.rand(2, 3, 20, 12)).shape[0] == 2


def test_dino_critic_passes_gradients_to_the_reconstruction_only() -> None:
    critic = dino()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    for parameter in critic.heads.parameters():
        parameter.requires_grad_(False)
    (-critic(images).mean()).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())

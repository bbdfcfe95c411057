"""Losses on clips: numbers worked out by hand, what costs nothing, and images among the clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.core.config.parts import LossConfig
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.contracts import BlockFeatures, Features, StepContext
from rpiae.core.model.resolve import part_config
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.draws import StepRandomness
from rpiae.losses.adversarial import AdversarialLoss
from rpiae.losses.pivot import PivotRelationalLoss
from rpiae.losses.temporal import (
    FlickerLoss,
    PivotTrajectoryLoss,
    TemporalDifferenceLoss,
    static_regions,
)
from rpiae.tasks.tokenizer.critic import CriticLearner
from tests.toys import LOSSES

TEMPORAL = ("temporal-difference", "flicker", "pivot-trajectory")


class Anchor:
    """A replica that always sees the same tokens."""

    num_blocks = 1

    def __init__(self, features: Features) -> None:
        self._features = features

    def features(self, images: Tensor) -> Features:
        return self._features

    def blocks(self, images: Tensor, indices: Any) -> BlockFeatures:
        return BlockFeatures([self._features.tokens for _ in indices], self._features.grid)


def context(**given: Any) -> StepContext:
    return StepContext(**(dict.fromkeys(StepContext._fields) | given))


def clip_of(*frames: float, side: int = 4) -> Tensor:
    """A clip of plain frames, (1, 3, t, side, side)."""
    return torch.tensor(frames).view(1, 1, -1, 1, 1).expand(1, 3, -1, side, side).clone()


def tokens_of(*steps: list[float]) -> Features:
    """One token with these channels per step."""
    return Features(torch.tensor(steps).unsqueeze(0), (len(steps), 1, 1))


def flicker(images: Tensor, made: Tensor, *, neighbourhood: int = 1) -> float:
    loss = FlickerLoss(threshold=0.05, neighbourhood=neighbourhood)
    return loss(context(images=images, reconstruction=made)).item()


def test_differences_of_frames_against_the_true_ones() -> None:
    given = context(images=clip_of(0.1, 0.3, 0.2), reconstruction=clip_of(0.2, 0.3, 0.5))
    # Δx̂ = 0.1, 0.2 and Δx = 0.2, −0.1
    assert TemporalDifferenceLoss()(given).item() == pytest.approx((0.1 + 0.3) / 2)


def test_an_error_that_stays_costs_no_difference() -> None:
    images = torch.rand(2, 3, 5, 8, 8)
    given = context(images=images, reconstruction=images + 0.25)
    assert TemporalDifferenceLoss()(given).item() == pytest.approx(0, abs=1e-6)


def test_what_is_static_is_decided_on_the_true_clip_and_around_a_pixel() -> None:
    clip = clip_of(0.5, 0.5, 0.5, side=7)
    clip[0, 2, 1, 3, 3] = 0.6  # one channel of one pixel of the middle frame
    static = static_regions(clip, threshold=0.05, neighbourhood=3)
    assert static.shape == (1, 2, 7, 7)
    moving = torch.zeros(7, 7, dtype=torch.bool)
    moving[2:5, 2:5] = True
    assert torch.equal(~static[0], torch.stack([moving, moving]))
    alone = static_regions(clip, threshold=0.05, neighbourhood=1)
    assert (~alone).sum() == 2
    assert static_regions(clip, threshold=0.11, neighbourhood=3).all()


def test_brightness_that_flickers_where_nothing_moves() -> None:
    images = clip_of(0.5, 0.5, 0.5)
    assert flicker(images, clip_of(0.5, 0.6, 0.5)) == pytest.approx(0.1)
    assert flicker(images, clip_of(0.7, 0.7, 0.7)) == 0
    assert flicker(clip_of(0.2, 0.5, 0.8), clip_of(0.5, 0.6, 0.5)) == 0, "everything moves"


def test_only_places_that_are_still_count_and_every_clip_alike() -> None:
    images = clip_of(0.5, 0.5)
    images[..., 1, :, 2:] = 0.9
    made = images.clone()
    made[..., 1, :, :2] += 0.1
    assert flicker(images, made) == pytest.approx(0.1)
    both = torch.cat([images, clip_of(0.2, 0.8)]), torch.cat([made, clip_of(0.0, 0.0)])
    assert flicker(*both) == pytest.approx(0.1 / 2), "a clip without still places counts as 0"


def test_motion_of_tokens_against_the_replicas() -> None:
    wanted = tokens_of([0.0, 0.0], [1.0, 0.0], [1.0, 2.0])
    found = tokens_of([5.0, 5.0], [6.0, 5.0], [6.0, 5.0])
    given = context(images=None, replica=Anchor(wanted), features=found)
    squared = PivotTrajectoryLoss(of="features", distance="squared")(given)
    # Δz* = (1, 0), (0, 2) and Δz = (1, 0), (0, 0)
    assert squared.item() == pytest.approx((0 + 0 + 0 + 4) / 4)
    turned = context(
        replica=Anchor(wanted), features=wanted, images=None,
        decoded_features=tokens_of([0.0, 0.0], [3.0, 0.0], [3.0, -1.0]),
    )  # fmt: skip
    cosine = PivotTrajectoryLoss(of="decoded_features", distance="cosine")(turned)
    # 1 − cos is 0 and 2, weighted by the lengths 1 and 2
    assert cosine.item() == pytest.approx((1 * 0 + 2 * 2) / 3)


def test_drift_that_stays_costs_no_motion_and_that_of_its_own_twice_the_pivots() -> None:
    torch.manual_seed(0)
    anchor = Features(torch.randn(2, 50 * 6, 8), (50, 2, 3))
    loss = PivotTrajectoryLoss(of="features", distance="squared")
    shifted = Features(anchor.tokens + 3, anchor.grid)
    assert loss(context(replica=Anchor(anchor), features=shifted)).item() < 1e-10
    error = 0.1 * torch.randn(anchor.tokens.shape)
    noisy = context(replica=Anchor(anchor), features=Features(anchor.tokens + error, anchor.grid))
    assert loss(noisy).item() == pytest.approx(2 * error.square().mean().item(), rel=0.05)


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_a_static_clip_that_stays_static_costs_nothing(distance: Any) -> None:
    image, token = torch.rand(2, 3, 1, 8, 8), torch.randn(2, 1, 4, 8)
    still = Features(token.expand(2, 6, 4, 8).flatten(1, 2).clone().requires_grad_(), (6, 2, 2))
    made = (image * 0.9).expand(2, 3, 6, 8, 8).clone().requires_grad_()
    given = context(
        images=image.expand(2, 3, 6, 8, 8), reconstruction=made, features=still,
        replica=Anchor(still),
    )  # fmt: skip
    losses = [
        TemporalDifferenceLoss(),
        FlickerLoss(threshold=0.02, neighbourhood=3),
        PivotTrajectoryLoss(of="features", distance=distance),
    ]
    for loss in losses:
        value = loss(given)
        assert value.item() == 0
        value.backward()
    assert made.grad is not None
    assert still.tokens.grad is not None
    assert still.tokens.grad.isfinite().all()


@pytest.mark.parametrize("time", [(), (1,)], ids=["image", "one frame"])
@pytest.mark.parametrize(
    "loss", [*TEMPORAL, {"name": "pivot-trajectory", "distance": "cosine"}], ids=str
)
def test_one_frame_costs_nothing_and_is_part_of_the_graph(loss: Any, time: tuple[int]) -> None:
    config = part_config("losses", loss)
    made = torch.rand(2, 3, *time, 8, 8, requires_grad=True)
    tokens = torch.randn(2, 6, 4, requires_grad=True)
    given = context(
        images=torch.rand(2, 3, *time, 8, 8), reconstruction=made,
        features=Features(tokens, (1, 2, 3)), replica=Anchor(Features(tokens, (1, 2, 3))),
    )  # fmt: skip
    value = config.build()(given)
    assert value.item() == 0
    value.backward()
    assert isinstance(config, LossConfig)
    leaf = made if "pixels" in config.needs else tokens
    assert leaf.grad is not None
    assert not leaf.grad.any()


@given(rows=st.integers(1, 5), seed=st.integers(0, 99))
def test_clips_count_alike_whatever_batch_they_are_in(rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    images = torch.rand(rows, 3, 4, 6, 5)
    still = torch.rand(rows, 1, 1, 6, 5) < torch.rand(rows, 1, 1, 1, 1)
    images = torch.where(still, images[:, :, :1], images)
    made, tokens, anchor = torch.rand(images.shape), *torch.randn(2, rows, 8, 5)

    def value(loss: Any, part: slice) -> Tensor:
        grid = (4, 1, 2)
        return loss(
            context(
                images=images[part], reconstruction=made[part],
                features=Features(tokens[part], grid),
                replica=Anchor(Features(anchor[part], grid)),
            )
        )  # fmt: skip

    for loss in (
        TemporalDifferenceLoss(),
        FlickerLoss(threshold=0.02, neighbourhood=1),
        PivotTrajectoryLoss(of="features", distance="squared"),
        PivotTrajectoryLoss(of="features", distance="cosine"),
    ):
        alone = torch.stack([value(loss, slice(i, i + 1)) for i in range(rows)])
        torch.testing.assert_close(value(loss, slice(None)), alone.mean())


def test_a_neighbourhood_without_a_middle_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"neighbourhood.*must be odd, got 4"):
        part_config("losses", {"name": "flicker", "neighbourhood": 4})


def test_every_frame_of_a_clip_is_augmented_alike_and_as_an_image() -> None:
    torch.manual_seed(0)
    clip, draws = torch.rand(2, 3, 3, 16, 16), StepRandomness(0, "s", 0, (4, 5))
    shown: list[Tensor] = []

    def critic(images: Tensor) -> Tensor:
        shown.append(images)
        return images.flatten(1)

    loss = AdversarialLoss(objective="hinge", augment=("translation", "colour", "cutout"))
    loss(context(reconstruction=clip, draws=draws, critic=critic))
    [frames] = shown
    assert frames.shape == (6, 3, 16, 16)
    for step in range(3):
        alone = loss.augmented(clip[:, :, step], draws, "critic-model")
        assert torch.equal(frames[step::3], alone)


def test_the_critic_learns_from_the_frames_of_clips_and_from_images_as_ever() -> None:
    torch.manual_seed(0)
    loss = AdversarialLoss(objective="hinge", augment=("translation", "colour"))
    learner = CriticLearner(torch.nn.Flatten(), loss)
    draws = StepRandomness(0, "s", 0, (4, 5))
    images, made = torch.rand(2, 2, 3, 4, 16, 16)

    def told(step: slice) -> Tensor:
        return learner(0, images[:, :, step], made[:, :, step], draws).values[0].value

    each = torch.stack([told(slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(told(slice(None)), each.mean())
    alone = learner(0, images[:, :, 0], made[:, :, 0], draws).values[0].value
    assert torch.equal(alone, each[0])


def test_lpips_of_a_clip_is_the_mean_of_its_frames() -> None:
    torch.manual_seed(0)
    loss = part_config("losses", LOSSES["lpips"]).build()
    images, made = torch.rand(2, 2, 3, 3, 16, 16)
    found = loss.distance(made, images)
    each = [loss.distance(made[:, :, i], images[:, :, i]) for i in range(3)]
    assert found.shape == (2,)
    torch.testing.assert_close(found, torch.stack(each).mean(0))


def test_relations_are_those_within_frames_and_not_of_compressed_time() -> None:
    torch.manual_seed(0)
    anchor, tokens = torch.randn(2, 2, 3 * 4, 5)
    grid, frame = (3, 2, 2), (1, 2, 2)
    loss = PivotRelationalLoss(of="features", margin=0.1)
    found = loss(context(replica=Anchor(Features(anchor, grid)), features=Features(tokens, grid)))
    each = [
        loss(context(replica=Anchor(Features(a, frame)), features=Features(t, frame)))
        for a, t in zip(anchor.split(4, dim=1), tokens.split(4, dim=1), strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(each).mean())
    fewer = context(
        replica=Anchor(Features(anchor, grid)), features=Features(tokens, grid),
        latent=torch.randn(2, 4, 2, 2, 2),
    )  # fmt: skip
    with pytest.raises(UsageError, match="without downsampling, in space and in time"):
        PivotRelationalLoss(of="latent", margin=0.1)(fewer)


def test_losses_on_time_are_listed_as_such() -> None:
    tagged = {entry.name for entry in registry("losses").entries() if "video" in entry.tags}
    assert tagged == set(TEMPORAL)

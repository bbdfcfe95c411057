"""What is measured of clips: their frames as images, their motion, and their distance as clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rpiae
from rpiae.core.config.parts import MetricConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import HeldOut
from rpiae.core.model.folding import fold
from rpiae.core.model.geometry import to_8_bits
from rpiae.core.model.resolve import part_config
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.data.synthetic import SyntheticClips
from rpiae.evaluation.accumulators import ByFrame
from rpiae.evaluation.clip_spaces import FeaturesOverTime, WholeClips, clip_space
from rpiae.evaluation.configs import FlickerConfig
from rpiae.evaluation.distances import VideoDistance, shared_space
from rpiae.evaluation.examination import Examination, Measured
from rpiae.evaluation.frechet import FeatureMoments, frechet_distance
from rpiae.evaluation.held_out import HeldOutEvaluation
from rpiae.evaluation.interpolation import Interpolated, interpolated, kept_frames
from rpiae.evaluation.pixels import psnr_of, squared_errors
from rpiae.evaluation.spaces import EncoderSpace
from rpiae.evaluation.yardsticks import OverTime
from rpiae.latents.encoding import batch_size_for
from rpiae.losses.configs import FlickerLossConfig
from rpiae.losses.temporal import static_regions
from rpiae.tasks.tokenizer.replica import PivotReplica
from tests.toys import BRIDGES, DECODERS, ENCODERS
from tests.unit.test_tubelet import TubeletConfig
from tests.unit.test_tubelet import tokenizer as tubelets

FRAMES = 9
ALL = (
    "psnr", "ssim", "temporal", "flicker", "trajectory", "rfd:tiny", "rfvd:tiny", "pivot-rfd",
    "drift", "latents",
)  # fmt: skip


def stirred(model: RPiAE) -> RPiAE:
    """The tokenizer with weights under which neither pictures nor frames are all alike."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for role in ("bridge", "decoder"):
            for parameter in model.roles[role].parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=draws)
    return model.eval()


def of_images() -> RPiAE:
    return stirred(
        rpiae.build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"], seed=1)
    )


def of_clips() -> RPiAE:
    return stirred(
        rpiae.build(
            encoder=ENCODERS["vit"], bridge=BRIDGES["tvb4x4"], decoder=DECODERS["video-vit"], seed=1
        )
    )


MODELS: dict[str, Callable[[], RPiAE]] = {"of images": of_images, "of clips": of_clips}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> RPiAE:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return to_8_bits(SyntheticClips(16, FRAMES, count=5).clips)


@pytest.fixture(scope="module")
def replica() -> PivotReplica:
    pivot = rpiae.build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"], seed=5)
    return PivotReplica(pivot.roles["encoder"], output_patch=4)


def examined(
    clips: Tensor, model: RPiAE | None = None, made: Tensor | None = None, **options: Any
) -> Examination:
    """Clips, and what a tokenizer makes of them or is said to have made."""
    found = Examination(
        model or of_images(), clips, labels=torch.full((len(clips),), -1),
        positions=torch.arange(len(clips)), **options,
    )  # fmt: skip
    if made is not None:
        vars(found)["reconstruction"] = made
    return found


def measured(name: Any, *seen: Examination) -> Measured:
    """A metric of some examinations, as the engine shows them to it."""
    config = part_config("metrics", name)
    assert isinstance(config, MetricConfig)
    metric = config.build()
    for each in seen:
        metric.update(each if "clips" in config.needs else each.frames)
    found: Measured = metric.compute()
    return found


def numbers(
    clips: Tensor, model: RPiAE, replica: Any, metrics: Sequence[Any] = ALL
) -> dict[str, float]:
    """As a run measures what it holds out."""
    held_out = HeldOut(clips, tuple(map(str, range(len(clips)))), {})
    runtime = Runtime(device="cpu", precision="fp32")
    return HeldOutEvaluation(held_out, metrics, replica, runtime)(model)


def test_every_metric_has_numbers_of_clips(
    model: RPiAE, clips: Tensor, replica: PivotReplica
) -> None:
    found = numbers(clips, model, PivotReplica.beside(model, replica._encoder))  # type: ignore[arg-type]
    assert {
        "psnr", "psnr_first", "psnr_group", "psnr_rest", "ssim_first", "temporal", "temporal_true",
        "flicker", "flicker_true", "static_share", "trajectory", "rfd[tiny]", "rfvd[tiny]", "drift",
        "compression_values", "pivot_rfd",
    } <= found.keys()  # fmt: skip
    assert all(torch.tensor(list(found.values())).isfinite())


def test_frames_of_clips_are_measured_as_images_are(clips: Tensor, replica: PivotReplica) -> None:
    """Of a tokenizer of images, all but the size of a clip's latent, which is the same by frame."""
    model = of_images()
    names = ("psnr", "ssim", "rfd:tiny", "pivot-rfd", "drift", "latents")
    as_clips = numbers(clips, model, replica, names)
    as_images = numbers(fold(clips), model, replica, names)
    assert as_images.keys() < as_clips.keys()
    for name, value in as_images.items():
        assert as_clips[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_clips_of_one_frame_are_images(clips: Tensor, replica: PivotReplica) -> None:
    model = of_clips()
    names = ("psnr", "ssim", "drift", "latents", "rfd:tiny")
    replica = PivotReplica.beside(model, replica._encoder)  # type: ignore[arg-type]
    first = numbers(clips[:, :, 0], model, replica, names)
    as_clips = numbers(clips[:, :, :1], model, replica, names)
    assert as_clips.pop("psnr_first") == as_clips["psnr"]
    assert as_clips.pop("ssim_first") == as_clips["ssim"]
    assert as_clips == pytest.approx(first, rel=1e-5)


def test_metrics_of_clips_are_left_out_of_images(clips: Tensor, replica: PivotReplica) -> None:
    images = clips[:, :, 0]
    held_out = HeldOut(images, tuple("abcde"), {})
    runtime = Runtime(device="cpu", precision="fp32")
    evaluation = HeldOutEvaluation(held_out, ("psnr", "temporal", "rfvd:tiny"), replica, runtime)
    assert evaluation(of_images()).keys() == {"psnr", "psnr_pooled"}
    assert [text.partition(" is left out: ")[0] for text in evaluation.warnings] == [
        "temporal", "rfvd:tiny",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["temporal", "rfvd:tiny", "trajectory"])
def test_what_needs_two_frames_says_so(name: str, clips: Tensor, replica: PivotReplica) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        measured(name, examined(clips[:, :, :1], replica=replica))


def test_frames_carry_what_their_clip_does(clips: Tensor) -> None:
    seen = examined(clips[:2], of_clips())
    frames = seen.frames
    assert frames.given is seen
    assert frames.frames is frames
    assert frames.positions.tolist() == list(range(2 * FRAMES))
    assert frames.images[FRAMES + 3].equal(clips[1, :, 3])
    assert seen.latent_steps.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert seen.latent.shape[:3] == (2, 4, 3)
    assert frames.latent[FRAMES + 4].equal(seen.latent[1, :, 1])
    assert frames.decoded(frames.latent).equal(fold(seen.reconstruction))
    assert frames.features.tokens.shape == (2 * FRAMES, 16, seen.features.tokens.shape[-1])
    mean, logvar = frames.moments or pytest.fail("a variational bridge")
    assert mean.equal(frames.latent)
    assert logvar.shape == mean.shape


def test_frames_that_were_repeated_are_not_measured(clips: Tensor) -> None:
    """A group of four is filled with the last of seven frames; drift sees seven."""
    seen = examined(clips[:, :, :7], of_clips())
    assert seen.features.grid[0] == 9
    assert seen.frames.features.tokens.shape[0] == 5 * 7
    assert seen.frames.features.grid[0] == 1


def test_pixels_by_position(clips: Tensor) -> None:
    seen = examined(clips, of_clips())
    found = measured("psnr", seen)
    each = psnr_of(squared_errors(fold(seen.reconstruction), fold(clips))).reshape(-1, FRAMES)
    assert found.values["psnr"] == pytest.approx(each.mean().item())
    assert found.values["psnr_first"] == pytest.approx(each[:, 0].mean().item())
    assert found.values["psnr_group"] == pytest.approx(each[:, 1:5].mean().item())
    assert found.values["psnr_rest"] == pytest.approx(each[:, 5:].mean().item())
    assert found.details["psnr_by_frame"] == pytest.approx(each.mean(0).tolist())
    short = measured("psnr", examined(clips[:, :, :5], of_clips()))
    assert "psnr_group" in short.values
    assert "psnr_rest" not in short.values


def test_temporal_error_is_that_of_differences(clips: Tensor) -> None:
    shifted = (clips + 3 / 255).double()
    nothing = measured("temporal", examined(clips.double(), made=shifted))
    assert nothing.values["temporal"] == pytest.approx(0, abs=1e-4), "an error that stays is none"
    still = measured("temporal", examined(clips, made=clips[:, :, :1].expand_as(clips)))
    assert still.values["temporal"] == still.values["temporal_true"] > 0
    blinking = clips.clone()
    blinking[:, :, 1::2] += 2 / 255
    blinks = measured("temporal", examined(clips, made=blinking))
    assert blinks.values["temporal"] == pytest.approx(2, rel=1e-5), "levels of 8 bits"
    assert blinks.details["temporal_by_frame"] == pytest.approx([2.0] * (FRAMES - 1), rel=1e-5)


def test_flicker_is_change_where_nothing_moves(clips: Tensor) -> None:
    blinking = clips.clone()
    blinking[:, :, 1::2] += 2 / 255
    found = measured("flicker", examined(clips, made=blinking)).values
    assert found["flicker"] == pytest.approx(2, rel=1e-5)
    assert found["flicker_true"] < 1e-6
    static = static_regions(clips, threshold=0.02, neighbourhood=3)
    assert found["static_share"] == pytest.approx(static.double().mean().item())
    moving = blinking.clone()
    moving[:, :, 1:] += 0.5 * (~static).unsqueeze(1)
    again = measured("flicker", examined(clips, made=moving)).values
    assert again["flicker"] != pytest.approx(2, rel=1e-2), "what leaves a place is a change of it"
    with pytest.raises(UsageError, match="nothing stands still"):
        measured("flicker", examined(torch.rand(2, 3, 4, 16, 16)))


def test_flicker_is_the_losss() -> None:
    metric, loss = FlickerConfig(name="flicker"), FlickerLossConfig(name="flicker")
    assert (metric.threshold, metric.neighbourhood) == (loss.threshold, loss.neighbourhood)
    with pytest.raises(UsageError, match="odd, got 4"):
        FlickerConfig(name="flicker", neighbourhood=4)


def test_the_trajectory_of_the_pivot_itself_is_its_own(clips: Tensor) -> None:
    model = of_images()
    same = PivotReplica.beside(model, model.roles["encoder"])
    assert measured("trajectory", examined(clips, model, replica=same)).values[
        "trajectory"
    ] == pytest.approx(0, abs=1e-5)
    backwards = measured(
        "trajectory", examined(clips, model, replica=_Backwards(same))
    ).values["trajectory"]  # fmt: skip
    assert backwards == pytest.approx(2, abs=1e-5)
    still = clips[:, :, :1].expand_as(clips).contiguous()
    with pytest.raises(UsageError, match="do not change"):
        measured("trajectory", examined(still, model, replica=same))


class _Backwards:
    """A replica whose tokens move the other way."""

    def __init__(self, replica: PivotReplica) -> None:
        self._replica = replica

    def features(self, images: Tensor) -> Any:
        found = self._replica.features(images)
        return found._replace(tokens=-found.tokens)


def test_clips_that_end_at_different_frames_are_counted_by_frame() -> None:
    found, other = ByFrame(), ByFrame()
    found.add(torch.tensor([[1.0, 2.0, 3.0]]))
    other.add(torch.tensor([[3.0], [5.0]]))
    found.merge(other)
    assert found.means.tolist() == [3, 2, 3]
    assert found.mean() == pytest.approx(14 / 5)
    assert found.mean(slice(1, None)) == 2.5


def test_latents_of_clips_are_counted_by_the_second(clips: Tensor) -> None:
    for model, every in ((of_images(), 1), (of_clips(), 4)):
        found = measured("latents", examined(clips, model, frame_rate=24.0)).values
        steps = 1 + (FRAMES - 1) // every
        assert found["latent_values_per_second"] == 4 * 4 * 4 * 24 / every
        assert found["compression_values"] == 3 * 16 * 16 * FRAMES / (4 * 4 * 4 * steps)
    thinned = measured(
        "latents", examined(clips, Interpolated(of_images(), every=4), frame_rate=24.0)
    ).values
    assert thinned["latent_values_per_second"] == 4 * 4 * 4 * 6
    assert "latent_values_per_second" not in measured("latents", examined(clips)).values


def test_the_rate_of_clips_is_by_frame(clips: Tensor) -> None:
    """Of a tokenizer of images the same as of its frames."""
    model = of_images()
    whole = measured("latents", examined(clips, model)).values["rate_bits"]
    frames = measured("latents", examined(fold(clips), model)).values["rate_bits"]
    assert whole == pytest.approx(frames, rel=1e-5)


# rfvd


def distance(one: Tensor, other: Tensor, *sizes: int) -> float:
    metric = VideoDistance(space="tiny")
    for a, b in zip(one.split(list(sizes) or len(one)), other.split(list(sizes) or len(other)),
                    strict=True):  # fmt: skip
        metric.update(examined(a, made=b))
    return metric.compute().values["rfvd[tiny]"]


@given(st.integers(0, 2**20), st.permutations(range(5)), st.sampled_from([(5,), (2, 3), (1, 3, 1)]))
def test_rfvd_is_a_distance_of_sets(seed: int, order: list[int], sizes: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(seed)
    one, other = to_8_bits(torch.rand(2, 5, 3, 3, 8, 8, generator=draws))
    found = distance(one, other)
    assert found > 0
    assert distance(one, one) <= 1e-6 * found
    assert distance(other, one) == pytest.approx(found, rel=1e-5)
    assert distance(one[order], other, *sizes) == pytest.approx(found, rel=1e-5)


def test_rfvd_is_the_frechet_distance_of_features_over_time(clips: Tensor) -> None:
    made = to_8_bits(clips + 0.1 * torch.rand(clips.shape, generator=torch.Generator()))
    space = shared_space("tiny")
    moments = []
    for each in (clips, made):
        frames = space(fold(each)).reshape(len(each), FRAMES, -1)
        change = (frames[:, 1:] - frames[:, :-1]).abs()
        moments.append(FeatureMoments(2 * space.dimensions))
        moments[-1].add(torch.cat([frames.mean(1), change.mean(1)], dim=1))
    assert distance(clips, made) == pytest.approx(frechet_distance(*moments), rel=1e-6)


def test_rfvd_sees_the_order_of_frames_where_rfd_does_not(clips: Tensor) -> None:
    still = clips[:, :, :1].expand(-1, -1, 2, -1, -1)
    other = still.flip(0)
    steady = torch.cat([still, other], dim=2)
    flickering = torch.stack([still[:, :, 0], other[:, :, 0]] * 2, dim=2)
    seen = examined(steady, made=flickering)
    rfd = measured("rfd:tiny", seen).values["rfd[tiny]"]
    rfvd = measured("rfvd:tiny", seen).values["rfvd[tiny]"]
    assert rfvd > 100 * max(rfd, 1e-9)


def test_rfvd_warns_of_few_clips_and_needs_two(clips: Tensor) -> None:
    found = measured("rfvd:tiny", examined(clips))
    assert any("5 samples for 384 dimensions" in text for text in found.warnings)
    with pytest.raises(UsageError, match="at least 2 samples"):
        measured("rfvd:tiny", examined(clips[:1]))


def test_clips_out_of_range_have_no_rfvd(clips: Tensor) -> None:
    with pytest.raises(UsageError, match=r"lie outside \[0, 1\]: divide 8-bit values by 255"):
        measured("rfvd:tiny", examined(clips * 255, made=clips))


class PretrainedTubelets(TubeletConfig):
    """An encoder of clips whose weights are there."""

    def load_pretrained(self, module: nn.Module) -> None:
        draws = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.1, generator=draws)


def test_encoders_of_clips_see_clips_as_they_are(clips: Tensor) -> None:
    images = EncoderSpace("tubelets", PretrainedTubelets(name="tubelets"))
    space = clip_space(images)
    assert isinstance(space, WholeClips)
    assert space.facts["over_time"] == "clips as they are, 2 frames per token"
    found = space.described(examined(clips), "images")
    assert found.shape == (len(clips), space.dimensions)
    backwards = space.described(examined(clips.flip(2)), "images")
    assert not found.allclose(backwards, rtol=1e-3), "a token has two frames in their order"
    with pytest.raises(UsageError, match="1 frame is too few for the clip space 'tubelets', which "
                       "needs at least 2 per clip"):  # fmt: skip
        space.described(examined(clips[:, :, :1]), "images")
    still = torch.stack([clips[:, :, 0]] * 2, dim=2)
    assert images(clips[:, :, 0]).allclose(images(still), atol=1e-6), "rfd sees a still clip"


def test_a_tokenizer_of_tubelets_is_measured(clips: Tensor) -> None:
    model = stirred(tubelets("tvb4x4"))
    replica = PivotReplica.beside(model, tubelets("vb4").roles["encoder"])
    found = numbers(clips, model, replica)
    assert {"psnr_group", "trajectory", "rfvd[tiny]", "compression_values"} <= found.keys()
    assert found["trajectory"] == pytest.approx(0, abs=1e-5)
    assert found["drift"] == pytest.approx(0, abs=1e-5)
    seen = examined(clips, model)
    assert seen.latent_steps.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert seen.latent.shape[2] == 2


def test_a_space_of_images_is_one_of_clips_over_time(clips: Tensor) -> None:
    space = clip_space(shared_space("tiny"))
    assert isinstance(space, FeaturesOverTime)
    with pytest.raises(UsageError, match=r"1 frame is too few .* at least 2 per clip"):
        space.described(examined(clips[:, :, :1]), "images")
    assert "mean absolute difference" in space.facts["over_time"]


# Every n-th frame


def test_frames_in_between_lie_on_straight_lines() -> None:
    ramp = torch.arange(10.0).view(1, 1, -1, 1, 1).expand(2, 3, -1, 2, 2)
    for frames in range(1, 11):
        kept = kept_frames(ramp[:, :, :frames], 4)
        made = interpolated(kept, 4, frames)
        last = (frames - 1) // 4 * 4
        assert made.shape == (2, 3, frames, 2, 2)
        assert made[0, 0, :, 0, 0].tolist() == [min(t, last) for t in range(frames)]


def test_a_tokenizer_of_every_nth_frame(clips: Tensor) -> None:
    model = of_images()
    thinned = Interpolated(model, every=4)
    kept = thinned.reconstruct(clips)[:, :, ::4]
    assert kept.equal(model.reconstruct(clips[:, :, ::4]))
    made = thinned.reconstruct(clips)
    assert made.shape == clips.shape
    assert made[:, :, 6].allclose((made[:, :, 4] + made[:, :, 8]) / 2, atol=1e-6)
    assert thinned.reconstruct(clips[:, :, 0]).equal(model.reconstruct(clips[:, :, 0]))
    assert Interpolated(model, every=1).reconstruct(clips).equal(model.reconstruct(clips))
    assert examined(clips, thinned).latent.shape[2] == 3
    with pytest.raises(UsageError, match="not every 0"):
        Interpolated(model, every=0)


def test_codes_of_images_work_over_time(clips: Tensor) -> None:
    every = OverTime(lambda images: images / 2)
    assert every(clips).equal(clips / 2)
    assert every(clips[:, :, 0]).equal(clips[:, :, 0] / 2)
    thinned = OverTime(lambda images: images / 2, every=4)
    assert thinned(clips)[:, :, 8].equal(clips[:, :, 8] / 2)
    assert thinned(clips)[:, :, 2].allclose((clips[:, :, 0] + clips[:, :, 4]) / 4)


def test_batches_count_the_frames_of_clips() -> None:
    model = of_clips()
    images = batch_size_for(model, 32)
    assert batch_size_for(model, 32, 17) == images // 17
    assert batch_size_for(model, 32, 16) == images // 17, "a group is filled"
    assert batch_size_for(model, 32, 10**6) == 1

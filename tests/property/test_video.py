"""What a tokenizer in time promises, for random clips, weights and ways to cut them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rpiae
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.contracts import GaussianPosterior
from rpiae.core.model.streaming import Stream, reconstructed
from rpiae.core.model.tokenizer import RPiAE

FACTORS = (1, 2, 4, 8)
ENCODER = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2}
IMAGE_BRIDGE = {"name": "variational", "latent_channels": 4, "decoder_layers": 1}
IMAGE_DECODER = {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "mlp_hidden": 32}
IMAGE_CONV = {"name": "conv", "width": 32, "depth": 2, "blocks": 0}

#: Pixels per token, from the description of ENCODER.
PATCH = 4

sizes = st.tuples(st.integers(3, 21), st.integers(3, 21))


def tokenizer(factor: int = 4, *, decoder: Any = IMAGE_DECODER, shaken: bool = True) -> RPiAE:
    """One whose weights are all at random, those that begin as zero too, unless it is not shaken."""
    return _tokenizer(factor, "conv" if decoder is IMAGE_CONV else "vit", shaken)


@functools.cache
def _tokenizer(factor: int, decoder: str, shaken: bool) -> RPiAE:
    model = rpiae.build(
        encoder=ENCODER,
        bridge={
            **IMAGE_BRIDGE, "name": "temporal-variational", "temporal_downsampling": factor,
            "window": 3, "depth": 1,
        },
        decoder={
            "name": "video", "window": 5,
            "image": IMAGE_CONV if decoder == "conv" else IMAGE_DECODER,
        },
        pretrained=False,
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(factor)
    for parameter in model.parameters() if shaken else []:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def clip(frames: int, size: tuple[int, int], *, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, frames, *size, generator=torch.Generator().manual_seed(seed))


def whole(model: RPiAE, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Latent and reconstruction, not clamped, of a clip in one pass."""
    latent = model.encode(clip).mode()
    return latent, model.decode(latent, size=clip.shape[2:])


def in_pieces(
    model: RPiAE, clip: Tensor, plan: Sequence[int], tile: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same in pieces of these lengths."""
    latents, frames = [], []
    with Stream(model, tile=tile) as stream:
        for chunk in torch.split(clip, list(plan), dim=2):
            latents.append(stream.encode(chunk).mode())
            frames.append(stream.decode(latents[-1]))
        latents.append(stream.finish().mode())
        frames.append(stream.decode(latents[-1]))
    return torch.cat(latents, dim=2), torch.cat(frames, dim=2)


@st.composite
def plans(draw: st.DrawFn, most: int = 20) -> list[int]:
    """Lengths of a clip's pieces."""
    frames = draw(st.integers(1, most))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, frames - 1)), max_size=6)))
    ends = [*(cut for cut in cuts if cut < frames), frames]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("factor", FACTORS)
@given(frames=st.integers(1, 20), size=sizes)
@torch.no_grad()
def test_as_many_frames_come_back_as_went_in(
    factor: int, frames: int, size: tuple[int, int]
) -> None:
    model = tokenizer(factor)
    latent, made = whole(model, clip(frames, size))
    assert latent.shape[2] == 1 + math.ceil((frames - 1) / factor)
    assert made.shape == (1, 3, frames, *size)


@pytest.mark.parametrize("factor", FACTORS)
@given(plan=plans(), size=sizes, tiled=st.booleans(), conv=st.booleans())
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(
    factor: int, plan: list[int], size: tuple[int, int], tiled: bool, conv: bool
) -> None:
    model = tokenizer(factor, decoder=IMAGE_CONV if conv else IMAGE_DECODER)
    given_clip = clip(sum(plan), size)
    tile = 2 * PATCH if tiled else None
    if tiled:
        latent, made = in_pieces(model, given_clip, [sum(plan)], tile)
    else:
        latent, made = whole(model, given_clip)
    pieces, streamed = in_pieces(model, given_clip, plan, tile)
    torch.testing.assert_close(pieces, latent, rtol=0, atol=1e-5)
    torch.testing.assert_close(streamed, made, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
@given(frames=st.integers(2, 20), changed=st.integers(0, 19), tiled=st.booleans())
@torch.no_grad()
def test_a_change_reaches_nothing_before_its_group(
    factor: int, frames: int, changed: int, tiled: bool
) -> None:
    changed %= frames
    model = tokenizer(factor)
    one = clip(frames, (8, 12))
    other = one.clone()
    other[:, :, changed] = 1 - other[:, :, changed]
    tile = 2 * PATCH if tiled else None
    latent, made = in_pieces(model, one, [frames], tile)
    latent_after, made_after = in_pieces(model, other, [frames], tile)
    group = 0 if changed == 0 else 1 + (changed - 1) // factor
    first = 0 if group == 0 else 1 + (group - 1) * factor
    assert torch.equal(latent[:, :, :group], latent_after[:, :, :group])
    assert torch.equal(made[:, :, :first], made_after[:, :, :first])
    assert not torch.equal(latent[:, :, group], latent_after[:, :, group])
    assert not torch.equal(made[:, :, first:], made_after[:, :, first:])


@pytest.mark.parametrize("factor", FACTORS)
@given(size=sizes)
@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(factor: int, size: tuple[int, int]) -> None:
    model = tokenizer(factor)
    image = clip(1, size)
    latent, made = whole(model, image)
    of_image = model.encode(image[:, :, 0]).mode()
    assert torch.equal(of_image, latent[:, :, 0])
    assert torch.equal(model.decode(of_image, size=size), made[:, :, 0])


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("tile", [None, 2 * PATCH])
@given(plan=plans(), colour=st.tuples(*[st.floats(0, 1, width=32)] * 3))
@torch.no_grad()
def test_a_static_clip_comes_back_static(
    factor: int, tile: int | None, plan: list[int], colour: tuple[float, float, float]
) -> None:
    """Whatever the weights: no frame differs from the first, in no chunk, group or tile."""
    model = tokenizer(factor)
    still = torch.tensor(colour).view(1, 3, 1, 1, 1).expand(-1, -1, sum(plan), 12, 20)
    latent, made = in_pieces(model, still, plan, tile)
    torch.testing.assert_close(latent, latent[:, :, :1].expand_as(latent), rtol=0, atol=1e-5)
    torch.testing.assert_close(made, made[:, :, :1].expand_as(made), rtol=0, atol=1e-5)


@given(plan=plans(most=65))
@torch.no_grad()
def test_a_constant_clip_has_one_mean_in_every_chunk_and_tile(plan: list[int]) -> None:
    """Tiles of 4 positions lie 3 apart: those with a neighbour on each side look the same."""
    model = tokenizer()
    stride = 3 * PATCH
    still = torch.full((1, 3, sum(plan), 4 * PATCH, 4 * stride + 4 * PATCH), 0.3)
    with Stream(model, tile=4 * PATCH) as stream:
        chunks = [stream.decode(stream.encode(c).mode()) for c in torch.split(still, plan, dim=2)]
    means = torch.stack(
        [
            chunk[..., i * stride : (i + 1) * stride].mean((-3, -2, -1))
            for chunk in chunks
            if chunk.shape[2]
            for i in range(1, 4)
        ]
    )
    torch.testing.assert_close(means, means[:1].expand_as(means), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("decoder", [IMAGE_DECODER, IMAGE_CONV])
@torch.no_grad()
def test_a_new_one_gives_what_the_image_tokenizer_in_it_gives(factor: int, decoder: Any) -> None:
    """Images to the bit; of a clip, the latents of every T-th frame."""
    model = tokenizer(factor, decoder=decoder, shaken=False)
    image = rpiae.build(
        encoder=ENCODER, bridge=IMAGE_BRIDGE, decoder=decoder, pretrained=False
    ).eval()
    image.encoder.load_state_dict(model.encoder.state_dict())
    image.bridge.load_state_dict(model.bridge.image.state_dict())
    image.decoder.load_state_dict(model.decoder.image.state_dict())
    frames = clip(1 + 2 * factor, (9, 14))
    assert torch.equal(model.reconstruct(frames[:, :, 0]), image.reconstruct(frames[:, :, 0]))
    own, theirs = model.encode(frames).mode(), image.encode(frames[:, :, ::factor]).mode()
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-6)
    if factor == 1:
        torch.testing.assert_close(model.reconstruct(frames), image.reconstruct(frames))


@given(plan=plans(most=12), tiled=st.booleans(), bridge=st.sampled_from(["tvb", "conv", "linear"]))
@torch.no_grad()
def test_samples_and_moments_are_those_of_the_whole(
    plan: list[int], tiled: bool, bridge: str
) -> None:
    model = tokenizer() if bridge == "tvb" else other_bridge(bridge)
    frames, tile = clip(sum(plan), (10, 18)), 2 * PATCH if tiled else None
    with Stream(model, tile=tile) as stream:
        at_once = [stream.encode(frames), stream.finish()]
    with Stream(model, tile=tile) as stream:
        pieces = [*map(stream.encode, torch.split(frames, plan, dim=2)), stream.finish()]
    modes = [torch.cat([p.mode() for p in found], dim=2) for found in (at_once, pieces)]
    torch.testing.assert_close(modes[1], modes[0], rtol=0, atol=1e-5)
    noise = torch.randn(modes[0].shape)
    samples = []
    for found in (at_once, pieces):
        steps = [p.mode().shape[2] for p in found]
        noises = torch.split(noise, steps, dim=2)
        samples.append(torch.cat([p.sample(n) for p, n in zip(found, noises, strict=True)], dim=2))
    torch.testing.assert_close(samples[1], samples[0], rtol=0, atol=1e-5)
    gaussian = [p for p in at_once if isinstance(p, GaussianPosterior)]
    assert bool(gaussian) == model.bridge.gaussian
    if gaussian:
        assert not torch.equal(samples[0], modes[0])
        assert torch.cat([p.mean for p in gaussian], dim=2).shape == noise.shape


@torch.no_grad()
def test_a_piece_that_completes_nothing_has_a_posterior_of_the_same_kind() -> None:
    with Stream(tokenizer(), tile=2 * PATCH) as stream:
        first, nothing = stream.encode(clip(1, (10, 18))), stream.encode(clip(1, (10, 18)))
    assert isinstance(nothing, GaussianPosterior)
    for found in (nothing.mode(), nothing.mean, nothing.logvar, nothing.sample()):
        assert found.shape == (1, 4, 0, *first.mode().shape[3:])
    assert nothing.kl() == 0
    with Stream(other_bridge("linear")) as stream:
        stream.encode(clip(1, (10, 18)))
        assert not isinstance(stream.encode(clip(1, (10, 18))), GaussianPosterior)


def test_time_is_compressed_once() -> None:
    inner = {"name": "temporal", "image": "linear4", "temporal_downsampling": 1}
    with pytest.raises(ConfigError, match=r"image: 'temporal' compresses time itself"):
        rpiae.build(
            encoder=ENCODER, bridge={"name": "temporal", "image": inner}, decoder=IMAGE_DECODER,
            pretrained=False,
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"image: 'video-vit-t' is one of videos itself"):
        rpiae.build(
            encoder=ENCODER, bridge=IMAGE_BRIDGE,
            decoder={"name": "video", "image": "video-vit-t"}, pretrained=False,
        )  # fmt: skip


@functools.cache
def other_bridge(name: str) -> RPiAE:
    """A temporal tokenizer around another bridge of images, which halves the grid or is fitted."""
    images = {
        "conv": {
            "name": "conv-kl", "latent_channels": 4, "width": 16, "blocks": 1, "downsampling": 2,
        },
        "linear": {"name": "linear", "latent_channels": 4},
    }  # fmt: skip
    return rpiae.build(
        encoder=ENCODER,
        bridge={"name": "temporal", "image": images[name], "temporal_downsampling": 4},
        decoder=IMAGE_DECODER,
        pretrained=False,
    ).eval()


@given(plan=plans(most=12), tiled=st.booleans(), size=sizes)
@torch.no_grad()
def test_reconstructed_gives_every_frame_in_its_size(
    plan: list[int], tiled: bool, size: tuple[int, int]
) -> None:
    frames = clip(sum(plan), size)
    pieces = torch.split(frames, plan, dim=2)
    made = list(reconstructed(tokenizer(), pieces, tile=2 * PATCH if tiled else None))
    joined = torch.cat(made, dim=2)
    assert joined.shape == frames.shape
    assert 0 <= joined.min() <= joined.max() <= 1


def test_what_a_stream_refuses() -> None:
    model = tokenizer()
    frames = clip(3, (8, 8))
    with pytest.raises(UsageError, match=r"of at least one frame, not .* \(1, 3, 8, 8\)"):
        model.stream().encode(frames[:, :, 0])
    with pytest.raises(UsageError, match="encode its frames first"):
        model.stream().finish()
    with pytest.raises(UsageError, match=r"Give the stream their size"):
        model.stream().decode(torch.zeros(1, 4, 1, 2, 2))
    with model.stream() as stream:
        stream.encode(frames)
        with pytest.raises(UsageError, match="8×12 pixels and the frames before 1 clips of 8×8"):
            stream.encode(clip(2, (8, 12)))
        with pytest.raises(UsageError, match=r"decodes latents \(batch, 4, steps, 2, 2\)"):
            stream.decode(torch.zeros(1, 4, 1, 3, 3))
        stream.finish()
        with pytest.raises(UsageError, match="this clip is finished"):
            stream.encode(frames)
    for tile in (0, 2.5, True):
        with pytest.raises(UsageError, match="a whole number of at least one pixel, not"):
            model.stream(tile=tile)  # type: ignore[arg-type]  # what is refused
    for size in ((3, 8, 8), (8,), (8.0, 8), (0, 8), 8):
        with pytest.raises(UsageError, match=r"size is \(height, width\) of the frames"):
            model.stream(size=size)  # type: ignore[arg-type]  # what is refused


def test_several_clips_take_no_more_tokens_at_once_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = tokenizer(), []
    features = model.features

    def watched(images: Tensor) -> Any:
        found = features(images)
        seen.append(found.tokens.shape[:2].numel())
        return found

    monkeypatch.setattr(model, "features", watched)
    monkeypatch.setattr("rpiae.core.model.streaming.TOKENS_AT_ONCE", 64)  # 4 frames of 3 clips: 48
    clips = torch.rand(3, 3, 17, 8, 8, generator=torch.Generator().manual_seed(0))
    with model.stream() as stream:
        made = stream.encode(clips).mode()
    assert seen == [12, 48, 48, 48, 48]
    assert (made - model.encode(clips).mode()).abs().max() < 1e-5

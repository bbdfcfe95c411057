"""Clips through parts for images: frame by frame, in chunks, and back; and images at the door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rpiae.core.model import folding
from rpiae.core.model.clips import as_clip, clip_blocks, clip_features
from rpiae.core.model.contracts import BlockFeatures, Features
from rpiae.core.model.folding import in_chunks, per_frame
from rpiae.core.model.geometry import encoder_view, geometry, map_to_tokens, patchify

small = st.integers(1, 4)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Sets how many entries a batch may have; the list of batch sizes that were run."""
    seen: list[int] = []

    def limited(most: int) -> list[int]:
        monkeypatch.setattr(folding, "MOST_FOLDED", most)
        return seen

    return limited


def _numbered(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


@given(b=small, c=small, t=small, h=small, w=small, most=st.integers(1, 20))
def test_maps_go_through_frame_by_frame(b: int, c: int, t: int, h: int, w: int, most: int) -> None:
    clip = _numbered(b, c, t, h, w)
    sizes: list[int] = []

    def network(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.repeat(1, 2, 3, 1) + images.amax((1, 2, 3), keepdim=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "MOST_FOLDED", most)
        found = per_frame(network, clip)
    assert max(sizes) <= most
    assert sum(sizes) == b * t
    frames = [network(clip[:, :, at]) for at in range(t)]
    assert torch.equal(found, torch.stack(frames, dim=2))


@given(b=small, c=small, t=small, n=small, most=st.integers(1, 20))
def test_tokens_go_through_frame_by_frame(b: int, c: int, t: int, n: int, most: int) -> None:
    tokens = _numbered(b, t * n, c)

    def network(image: Tensor) -> Tensor:
        return torch.cat([image.sum(1, keepdim=True), image.flip(1)], dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "MOST_FOLDED", most)
        found = per_frame(network, tokens, (t, 1, n))
    frames = [network(tokens[:, at * n : (at + 1) * n]) for at in range(t)]
    assert torch.equal(found, torch.cat(frames, dim=1))


def test_one_pass_over_images_and_few_frames_of_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "TOKENS_AT_ONCE", 10)
    sizes: list[int] = []

    def network(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images

    per_frame(network, torch.zeros(7, 1, 1, 2, 2))
    assert sizes == [7]
    sizes.clear()
    per_frame(network, torch.zeros(1, 1, 7, 2, 2))
    assert sizes == [2, 2, 2, 1]
    sizes.clear()
    per_frame(network, torch.zeros(1, 1, 3, 4, 4))
    assert sizes == [1, 1, 1]


def test_gradients_pass_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST_FOLDED", 2)
    clip = torch.randn(2, 3, 4, 2, 2, requires_grad=True)
    weight = torch.randn(3, requires_grad=True)

    def network(images: Tensor) -> Tensor:
        return (images * weight.view(-1, 1, 1)).sin()

    chunked = torch.autograd.grad(per_frame(network, clip).sum(), (clip, weight))
    whole = torch.autograd.grad((clip * weight.view(-1, 1, 1, 1)).sin().sum(), (clip, weight))
    for found, wanted in zip(chunked, whole, strict=True):
        torch.testing.assert_close(found, wanted)


def test_an_empty_batch_and_what_is_no_clip() -> None:
    assert per_frame(lambda x: x, torch.zeros(0, 2, 3, 4, 5)).shape == (0, 2, 3, 4, 5)
    assert per_frame(lambda x: x, torch.zeros(0, 6, 2), (3, 1, 2)).shape == (0, 6, 2)
    with pytest.raises(ValueError, match=r"\(b, c, t, h, w\), not \(1, 2, 3, 4\)"):
        per_frame(lambda x: x, torch.zeros(1, 2, 3, 4))


@given(n=st.integers(0, 9), most=st.integers(1, 10))
def test_chunks_of_several_tensors_stay_together(n: int, most: int) -> None:
    a, b = _numbered(n, 2), -_numbered(n, 3)
    total, first = in_chunks(lambda x, y: [x.sum(1) + y.sum(1), x], a, b, most=most)
    assert torch.equal(total, a.sum(1) + b.sum(1))
    assert torch.equal(first, a)


class Tubelets(nn.Module):
    """An encoder of clips: two frames of 2×3 pixels are a token, which knows of the clip's mean."""

    width, num_blocks = 36, 1
    patch = (2, 2, 3)
    mean = std = (0.5, 0.5, 0.5)

    def forward(self, clip: Tensor) -> Features:
        assert clip.ndim == 5
        t, h, w = (side // each for side, each in zip(clip.shape[2:], self.patch, strict=True))
        tokens = patchify(clip, self.patch)
        return Features(tokens + tokens.mean((1, 2), keepdim=True), (t, h, w))

    def blocks(self, clip: Tensor, indices: Any) -> BlockFeatures:
        tokens, grid = self(clip)
        return BlockFeatures([tokens for _ in indices], grid)


@given(frames=st.integers(1, 5), height=st.integers(1, 5), width=st.integers(1, 7))
def test_an_encoder_of_clips_sees_the_clip_whole_with_its_last_frame_repeated(
    frames: int, height: int, width: int
) -> None:
    encoder: Any = Tubelets()
    clip = torch.rand(1, 3, frames, height, width)
    plan = geometry((frames, height, width), patch=encoder.patch, output_patch=(2, 2, 3))

    def prepare(images: Tensor) -> Tensor:
        assert images.ndim == 4
        return encoder_view(images, plan) - 0.5

    found = clip_features(encoder, clip, plan, prepare)
    assert found.grid == plan.grid
    last = clip[:, :, -1:]
    even = torch.cat([clip, last], dim=2) if frames % 2 else clip
    wanted = encoder(torch.stack([prepare(frame) for frame in even.unbind(2)], dim=2))
    assert torch.equal(found.tokens, wanted.tokens)
    again = clip_blocks(encoder, clip, plan, prepare, (0, -1))
    assert again.grid == plan.grid
    assert all(torch.equal(tokens, found.tokens) for tokens in again.tokens)


def test_images_gain_a_time_axis_and_clips_keep_theirs() -> None:
    images = torch.rand(2, 3, 4, 5)
    assert torch.equal(as_clip(images)[:, :, 0], images)
    assert as_clip(as_clip(images)).shape == (2, 3, 1, 4, 5)
    assert torch.equal(map_to_tokens(as_clip(images)), map_to_tokens(images))

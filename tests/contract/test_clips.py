"""The tokenizer's door: a clip through parts for images is its frames, one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import rpiae
from rpiae.core.errors import UsageError
from rpiae.core.model import folding
from rpiae.core.model.contracts import GaussianPosterior, QuantisedPosterior
from rpiae.core.model.geometry import tokens_to_map
from rpiae.core.model.tokenizer import RPiAE
from rpiae.tasks.tokenizer.replica import PivotReplica
from tests.toys import BRIDGES, DECODERS, ENCODERS

#: Bridges that see time: with them, a clip is more than its frames (tests/property/test_video.py).
IN_TIME = [
    name
    for name, part in BRIDGES.items()
    if isinstance(part, dict) and "temporal_downsampling" in part
]
PARTS = {
    **{name: (name, "vb4", "vit") for name in ENCODERS},
    **{name: ("vit", name, "vit") for name in BRIDGES if name not in IN_TIME},
    **{f"{name} decoder": ("vit", "conv-kl-half", name) for name in DECODERS},
}
CLIP = (2, 3, 3, 33, 50)


def tokenizer(encoder: str, bridge: str, decoder: str) -> RPiAE:
    model = rpiae.build(
        encoder=ENCODERS[encoder], bridge=BRIDGES[bridge], decoder=DECODERS[decoder],
        pretrained=False,
    )  # fmt: skip
    return model.eval().double()


@pytest.fixture(params=PARTS.values(), ids=PARTS)
def model(request: pytest.FixtureRequest) -> RPiAE:
    return tokenizer(*request.param)


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(CLIP, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.inference_mode()
@pytest.mark.parametrize("most", [2, 65_535])
def test_a_clip_is_its_frames(
    model: RPiAE, clip: Tensor, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [model.encode(frame) for frame in clip.unbind(2)]
    latents = torch.stack([posterior.mode() for posterior in frames], dim=2)
    images = torch.stack([model.decode(latent) for latent in latents.unbind(2)], dim=2)
    monkeypatch.setattr(folding, "MOST_FOLDED", most)
    posterior = model.encode(clip)
    torch.testing.assert_close(posterior.mode(), latents)
    assert latents.shape[:3] == (2, model.bridge.latent_channels, 3)
    if model.bridge.gaussian:
        assert isinstance(posterior, GaussianPosterior)
        logvar = torch.stack([frame.logvar for frame in frames], dim=2)
        torch.testing.assert_close(posterior.logvar, logvar)
        kl = torch.stack([frame.kl() for frame in frames]).mean()
        torch.testing.assert_close(posterior.kl(), kl)
    torch.testing.assert_close(model.decode(latents), images)
    assert torch.equal(
        model.decode(latents, size=(2, 33, 50)), model.decode(latents)[:, :, :2, :33, :50]
    )
    assert model.reconstruct(clip).shape == clip.shape
    torch.testing.assert_close(model(clip), images[..., :33, :50].clamp(0, 1))


@torch.inference_mode()
@pytest.mark.parametrize(
    "parts", [*PARTS.values(), *(("vit", name, "vit") for name in IN_TIME)], ids="-".join
)
def test_the_replica_sees_a_clip_as_the_encoder_does(
    parts: tuple[str, str, str], clip: Tensor
) -> None:
    model = tokenizer(*parts)
    wanted = model.features(clip)
    assert wanted.grid == model.geometry(33, 50, frames=3).grid
    replica = PivotReplica.beside(model, model.roles["encoder"])
    found = replica.features(clip)
    assert found.grid == wanted.grid
    torch.testing.assert_close(found.tokens, wanted.tokens)
    blocks = replica.blocks(clip, (0, -1))
    assert blocks.grid == wanted.grid
    last = replica.blocks(clip[:, :, -1], (0, -1))
    for tokens, of_last in zip(blocks.tokens, last.tokens, strict=True):
        torch.testing.assert_close(tokens[:, -of_last.shape[1] :], of_last)


@torch.inference_mode()
def test_images_have_no_time_at_the_door_and_one_frame_behind_it(
    model: RPiAE, clip: Tensor
) -> None:
    images = clip[:, :, 0]
    posterior, inside = model.encode(images), model.posterior(model.features(images))
    assert torch.equal(posterior.mode(), inside.mode().squeeze(2))
    assert inside.mode().ndim == 5
    noise = torch.randn(posterior.mode().shape, dtype=torch.float64)
    assert torch.equal(posterior.sample(noise), inside.sample(noise.unsqueeze(2)).squeeze(2))
    assert posterior.sample().shape == noise.shape
    if model.bridge.gaussian:
        assert isinstance(posterior, GaussianPosterior)
        assert isinstance(inside, GaussianPosterior)
        assert torch.equal(posterior.mean, inside.mean.squeeze(2))
        assert torch.equal(posterior.kl(), inside.kl())
    assert not isinstance(posterior, QuantisedPosterior)
    made = model.decode(posterior.mode(), size=(33, 50))
    assert made.shape == images.shape
    one = model.decode(inside.mode(), size=(1, 33, 50))
    assert torch.equal(one.squeeze(2), made)
    assert model.decode(inside.mode()).ndim == 5


def test_gradients_reach_every_frame(clip: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST_FOLDED", 4)
    model = tokenizer("vit", "vb4", "vit")
    clip.requires_grad_()
    model.decode(model.encode(clip).mode()).square().sum().backward()
    assert clip.grad is not None
    assert (clip.grad.abs().amax((0, 1, 3, 4)) > 0).all()
    assert all(p.grad is not None for p in model.parameters())


def test_statistics_of_features_hold_in_every_frame(clip: Tensor) -> None:
    model = tokenizer("vit", "vb4", "vit")
    features = model.features(clip)
    t, h, w = features.grid
    model.feature_mean = torch.randn(32, h, w, dtype=torch.float64)
    model.feature_var = torch.rand(32, h, w, dtype=torch.float64)
    normalised = tokens_to_map(*model.normalised(features))
    for at, frame in enumerate(clip.unbind(2)):
        one = tokens_to_map(*model.normalised(model.features(frame)))
        torch.testing.assert_close(normalised[:, :, at : at + 1], one)
    expanded = model.expand(torch.randn(2, 4, t, h, w, dtype=torch.float64))
    assert expanded.grid == (t, h, w)


def test_latents_of_clips_are_normalised_per_channel() -> None:
    model = tokenizer("vit", "vb4", "vit")
    model.latent_mean = torch.arange(4.0, dtype=torch.float64)
    model.latent_std = torch.arange(1.0, 5.0, dtype=torch.float64)
    clip = torch.randn(2, 4, 4, 3, 5, dtype=torch.float64)
    normalised = model.normalise_latent(clip)
    frames = [model.normalise_latent(frame) for frame in clip.unbind(2)]
    assert torch.equal(normalised, torch.stack(frames, dim=2))
    torch.testing.assert_close(model.denormalise_latent(normalised), clip)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8, 8), (1, 1, 3, 1, 8, 8), (1, 1, 3, 8, 8)])
def test_what_is_neither_images_nor_clips_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        UsageError, match=r"images must be float tensors .*, and clips \(batch, 3, frames,"
    ):
        tokenizer("vit", "vb4", "vit").encode(torch.zeros(shape))


def test_a_clip_without_frames_and_sizes_of_the_other_kind_are_refused() -> None:
    model = tokenizer("vit", "vb4", "vit")
    with pytest.raises(UsageError, match="at least one frame"):
        model.encode(torch.zeros(1, 3, 0, 8, 8))
    with pytest.raises(UsageError, match=r"size is \(T, H, W\) of clips, .*, not \(8, 8\)"):
        model.decode(torch.zeros(1, 4, 2, 2, 2), size=(8, 8))
    with pytest.raises(UsageError, match=r"size is \(H, W\) of images, .*, not \(1, 8, 8\)"):
        model.decode(torch.zeros(1, 4, 2, 2), size=(1, 8, 8))
    with pytest.raises(UsageError, match="the latent is empty"):
        model.decode(torch.zeros(1, 4, 0, 2, 2))


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_a_part_whose_patch_is_no_triple_is_refused(role: str) -> None:
    parts: dict[str, Any] = tokenizer("vit", "vb4", "vit").roles
    parts[role].patch = 4
    with pytest.raises(UsageError, match=rf"{role}.patch is 4, .*must set it, to \(1, p, p\)"):
        RPiAE(**parts)

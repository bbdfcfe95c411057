"""What a stream is given: what does not fit is refused in words, and leaves the stream as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rpiae
from rpiae.core.errors import UsageError
from rpiae.core.model.tokenizer import RPiAE
from tests.toys import BRIDGES, DECODERS, ENCODERS


@pytest.fixture(scope="module")
def model() -> RPiAE:
    torch.manual_seed(0)
    return rpiae.build(
        encoder=ENCODERS["vit"], bridge=BRIDGES["tvb4x4"], decoder=DECODERS["video-vit"],
        pretrained=False,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return torch.rand(2, 3, 7, 12, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda clip: (255 * clip).byte(), r"float tensors .* not torch\.uint8"),
        (lambda clip: clip[:, :1], r"\(batch, 3, frames, height, width\).*\(2, 1, 7, 12, 20\)"),
        (lambda clip: clip[:, :, :0], "at least one frame"),
        (lambda clip: clip[:, :, 0], r"not torch\.float32 \(2, 3, 12, 20\)"),
        (lambda clip: clip[..., :10], "2 clips of 12×10 pixels and the frames before 2 clips of 12×20"),
        (lambda clip: clip[:1], "1 clips of 12×20 pixels and the frames before 2 clips of 12×20"),
    ],
)  # fmt: skip
def test_a_chunk_that_does_not_fit_changes_nothing(
    model: RPiAE, clip: Tensor, wrong: Callable[[Tensor], Tensor], message: str
) -> None:
    with model.stream() as stream:
        latents = [stream.encode(clip[:, :, :3]).mode()]
        with pytest.raises(UsageError, match=message):
            stream.encode(wrong(clip))
        assert stream.frames == 3
        latents += [stream.encode(clip[:, :, 3:]).mode(), stream.finish().mode()]
        assert stream.frames == 7
        torch.testing.assert_close(torch.cat(latents, dim=2), model.encode(clip).mode())


def test_latents_of_another_tokenizer_are_refused(model: RPiAE, clip: Tensor) -> None:
    latent = model.encode(clip).mode()
    with model.stream(size=(12, 20)) as stream:
        for wrong in (latent[:, :2], latent[..., :2], latent[:, :, 0]):
            with pytest.raises(UsageError, match=r"decodes latents \(batch, 4, steps, 3, 5\)"):
                stream.decode(wrong)
        assert stream.decode(latent, frames=7).shape == clip.shape


def test_a_closed_stream_has_forgotten_the_clip(model: RPiAE, clip: Tensor) -> None:
    with model.stream() as stream:
        latent = stream.encode(clip).mode()
    for use in (
        lambda: stream.encode(clip),
        stream.finish,
        lambda: stream.decode(latent),
    ):
        with pytest.raises(UsageError, match="this stream is closed"):
            use()


def test_no_clips_pass(model: RPiAE, clip: Tensor) -> None:
    with model.stream(tile=8) as stream:
        latents = [stream.encode(clip[:0]).mode(), stream.finish().mode()]
        assert [latent.shape for latent in latents] == [(0, 4, 2, 3, 5), (0, 4, 1, 3, 5)]
        assert stream.decode(torch.cat(latents, dim=2)).shape == (0, 3, 7, 12, 20)


@pytest.mark.parametrize("size", [(8, 13, 20), (10, 12, 20), (0, 12, 20), (7, -1, 20)])
def test_more_than_there_is_cannot_be_decoded(
    model: RPiAE, clip: Tensor, size: tuple[int, int, int]
) -> None:
    latent = model.encode(clip).mode()
    assert model.decode(latent).shape[2:] == (9, 12, 20)
    with pytest.raises(
        UsageError, match="these latents are of 9 × 12 × 20 frames, rows and columns"
    ):
        model.decode(latent, size=size)

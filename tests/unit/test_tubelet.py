"""An encoder of clips, whose tokens stand for two frames, in a tokenizer: lengths, images, a stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve, frozen
from torch import Tensor, nn

import rpiae
from rpiae.core.config.parts import EncoderConfig, EncoderDescription
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.contracts import BlockFeatures, Features
from rpiae.core.model.geometry import map_grid, map_to_tokens, tokens_to_map
from rpiae.core.model.streaming import Stream
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.training import events
from rpiae.core.training.trainer import train
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.tasks.tokenizer.task import TokenizerTask
from rpiae.testing import check_encoder
from tests.toys import BRIDGES, DECODERS, toy_run

PATCH, WIDTH = 4, 32


class Tubelets(nn.Module):
    """One linear map per tubelet of two frames, and a second block."""

    patch = (2, PATCH, PATCH)
    width = WIDTH
    num_blocks = 2
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.3, 0.4)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, WIDTH, self.patch, stride=self.patch)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(self.num_blocks)])

    @property
    def last_weight(self) -> nn.Parameter:
        return self.layers[-1].weight  # type: ignore[return-value]

    def forward(self, clip: Tensor) -> Features:
        after = self.blocks(clip, [-1])
        return Features(torch.nn.functional.layer_norm(after.tokens[0], (WIDTH,)), after.grid)

    def blocks(self, clip: Tensor, indices: Sequence[int]) -> BlockFeatures:
        feature_map = self.embed(clip)
        kept = [map_to_tokens(feature_map)]
        for layer in self.layers:
            kept.append(kept[-1] + layer(kept[-1]).tanh())
        return BlockFeatures([kept[1:][index] for index in indices], map_grid(feature_map))


@frozen(kw_only=True)
class TubeletConfig(EncoderConfig):
    """Fields of ``Tubelets``."""

    module: ClassVar[str] = f"{__name__}:Tubelets"
    says: ClassVar[int] = 2

    def arguments(self) -> dict[str, Any]:
        return {}

    def describe(self) -> EncoderDescription:
        return EncoderDescription(
            width=WIDTH, patch=PATCH, frames=self.says, output_patch=PATCH, num_blocks=2,
            prefix_tokens=0, image_size=32, mean=Tubelets.mean, std=Tubelets.std,
        )  # fmt: skip


class LyingConfig(TubeletConfig):
    """Says one frame per token."""

    says = 1


ENCODER = TubeletConfig(name="tubelets", pretrained=False)


def tokenizer(bridge: str, decoder: str = "video-vit", encoder: EncoderConfig = ENCODER) -> RPiAE:
    torch.manual_seed(0)
    model = rpiae.build(
        encoder=encoder, bridge=BRIDGES[bridge], decoder=DECODERS[decoder], pretrained=False
    )
    return model.eval()


def test_contract() -> None:
    check_encoder(ENCODER)


@torch.inference_mode()
@pytest.mark.parametrize("bridge", ["identity", "vb4", "conv-kl-half", "temporal-linear", "tvb4x4"])
@pytest.mark.parametrize("frames", range(1, 10))
def test_as_many_frames_come_back_as_went_in(bridge: str, frames: int) -> None:
    model = tokenizer(bridge)
    clip = torch.rand(2, 3, frames, 13, 22)
    plan = model.geometry(13, 22, frames)
    ratio = getattr(model.bridge, "temporal_downsampling", 1)
    steps = 1 + -(-(-(-frames // 2) - 1) // ratio)
    latent = model.encode(clip).mode()
    assert latent.shape[2] == steps
    assert plan.padded[0] == plan.encoder_size[0] == 2 * (1 + (steps - 1) * ratio)
    assert plan.grid[0] == 1 + (steps - 1) * ratio
    assert model.decode(latent).shape[2] == plan.padded[0]
    assert model.reconstruct(clip).shape == clip.shape


@torch.inference_mode()
def test_the_last_frame_is_repeated_to_fill_a_token_and_a_group() -> None:
    model = tokenizer("temporal-linear")
    clip = torch.rand(1, 3, 4, 8, 12)
    filled = torch.cat([clip, clip[:, :, -1:], clip[:, :, -1:]], dim=2)
    assert torch.equal(model.encode(clip).mode(), model.encode(filled).mode())
    assert torch.equal(model.encode(clip[:, :, :3]).mode(), model.encode(filled[:, :, :3]).mode())


@torch.inference_mode()
def test_an_image_is_a_token_of_one_frame_repeated() -> None:
    model = tokenizer("vb4")
    image = torch.rand(2, 3, 13, 22)
    twice = torch.stack([image, image], dim=2)
    latent = model.encode(image).mode()
    assert latent.shape == (2, 4, 4, 6)
    assert torch.equal(latent, model.encode(twice).mode().squeeze(2))
    made = model.reconstruct(image)
    assert made.shape == image.shape
    assert torch.equal(made, model.reconstruct(twice)[:, :, 0])


@torch.inference_mode()
def test_tokens_are_the_encoders_own_on_normalised_clips() -> None:
    model = tokenizer("identity")
    clip = torch.rand(2, 3, 4, 8, 12)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (Tubelets.mean, Tubelets.std))
    wanted = model.encoder((clip - mean) / std)
    found = model.features(clip)
    assert found.grid == wanted.grid == (2, 2, 3)
    torch.testing.assert_close(found.tokens, wanted.tokens)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_the_replica_is_on_the_tokenizers_grid(frames: int) -> None:
    model = tokenizer("temporal-linear")
    replica = PivotReplica.beside(model, model.roles["encoder"])
    clip = torch.rand(1, 3, frames, 13, 22)
    wanted = model.features(clip)
    found, blocks = replica.features(clip), replica.blocks(clip, (0, -1))
    assert found.grid == blocks.grid == wanted.grid == model.geometry(13, 22, frames).grid
    torch.testing.assert_close(found.tokens, wanted.tokens)
    assert [tokens.shape for tokens in blocks.tokens] == [wanted.tokens.shape] * 2


def test_the_two_frames_of_a_token_can_differ_and_both_teach() -> None:
    model = tokenizer("identity").train()
    with torch.no_grad():
        for weight in model.roles["decoder"].parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    clip = torch.rand(1, 3, 2, 8, 8, requires_grad=True)
    made = model.decode(model.encode(clip).mode())
    assert not torch.allclose(made[:, :, 0], made[:, :, 1])
    (made[:, :, 1] - clip.detach()[:, :, 1]).square().sum().backward()
    assert clip.grad is not None
    assert (clip.grad.abs().amax((0, 1, 3, 4)) > 0).all()
    unused = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not unused


@pytest.mark.parametrize("bridge", ["vb4", "tvb4x4"])
def test_every_stage_of_the_papers_recipe_trains(bridge: str, tmp_path: Path) -> None:
    inputs = toy_run(
        tmp_path, "vit", bridge, "video-vit", "rpiae",
        "recipe.max_steps=2", "recipe.batch_size=2",
    )  # fmt: skip
    model, pivot = tokenizer(bridge), Tubelets()
    pivot.load_state_dict(model.roles["encoder"].state_dict())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    task = TokenizerTask(
        model, replica=PivotReplica.beside(model, pivot), evaluate=lambda *_: {"psnr": 0.0}
    )
    task.save = lambda folder: None  # type: ignore[method-assign]  # the part is in no registry
    seen = [
        event for event in train(evolve(inputs, task=task)) if isinstance(event, events.StepDone)
    ]
    assert any("pivot" in step.terms for step in seen)
    for role in model.roles:
        own = [name for name in before if name.startswith(role)]
        assert any(not torch.equal(before[name], model.state_dict()[name]) for name in own)


def test_a_decoder_of_images_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError) as caught:
        tokenizer("vb4", "vit")
    (problem,) = caught.value.problems
    assert "makes 1 frame per token and encoder 'tubelets' takes 2" in problem
    assert problem.endswith(": take a decoder of videos, such as video:vit")


def test_an_encoder_that_is_not_what_its_config_says_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"encoder\.frames: lying says 1, the model it builds has 2"
    ):
        tokenizer("vb4", "vit", LyingConfig(name="lying", pretrained=False))


def test_it_is_not_streamed_and_says_why() -> None:
    with pytest.raises(UsageError, match="takes 2 frames per token and looks at the whole clip"):
        Stream(tokenizer("vb4"))


def test_the_map_of_tokens_keeps_the_order_of_frames() -> None:
    model = tokenizer("identity")
    clip = torch.zeros(1, 3, 6, 8, 8)
    clip[:, :, 4:] = 1
    with torch.no_grad():
        features = model.features(clip)
    first, second, third = tokens_to_map(*features).unbind(2)
    assert torch.allclose(first, second)
    assert not torch.allclose(second, third)


@torch.inference_mode()
def test_a_patch_given_to_a_decoder_of_videos_is_that_of_the_one_inside() -> None:
    decoder = DECODERS["video-vit"] | {"patch": 8}
    model = rpiae.build(encoder=ENCODER, bridge="vb4", decoder=decoder, pretrained=False).eval()
    assert model.decoder.patch == (2, 8, 8)
    assert model.geometry(24, 40, 3).grid == (2, 3, 5)
    clip = torch.rand(1, 3, 3, 21, 40)
    assert model.reconstruct(clip).shape == clip.shape

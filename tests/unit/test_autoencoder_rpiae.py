"""A tokenizer as an autoencoder of diffusers, in diffusers' own functions, training loops and pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rpiae
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.tokenizer import RPiAE
from tests.hub import TOKEN, hub_at_work
from tests.toys import BRIDGES, DECODERS, ENCODERS

diffusers = pytest.importorskip(
    "diffusers", reason='diffusers is not installed: pip install "rpiae[interop]"'
)

from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # noqa: E402


def tokenizer(bridge: str = "vb4", *, norm: bool = True, decoder: str = "vit") -> RPiAE:
    """A toy whose latents lie on every fourth pixel."""
    model = rpiae.build(encoder=ENCODERS["vit"], bridge=BRIDGES[bridge], decoder=DECODERS[decoder])
    model.trained_size = 32
    if norm:
        channels = model.bridge.latent_channels
        model.register_buffer("latent_mean", torch.linspace(-1, 2, channels))
        model.register_buffer("latent_std", torch.linspace(0.5, 1.5, channels))
    return model.eval()


def pixels(*size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("bridge", ["vb4", "identity", "conv-kl-half", "tvb4x4"])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (29, 43)])
@torch.inference_mode()
def test_it_gives_what_the_tokenizer_gives(bridge: str, size: tuple[int, int]) -> None:
    model = tokenizer(bridge)
    autoencoder, x = rpiae.AutoencoderRPiAE(model), pixels(*size)
    posterior = autoencoder.encode(x).latent_dist
    wanted = model.encode((x + 1) / 2)
    assert torch.equal(posterior.mode(), wanted.mode())
    assert torch.equal(posterior.mean, wanted.mode())
    if model.bridge.gaussian:
        assert torch.equal(posterior.logvar, wanted.logvar)  # type: ignore[attr-defined]  # a Gaussian has it
    z = posterior.mode()
    assert torch.equal(autoencoder.decode(z).sample, model.decode(z) * 2 - 1)
    assert torch.equal(autoencoder(x).sample, model.decode(z, size=size) * 2 - 1)
    (first,) = autoencoder.encode(x, return_dict=False)
    (image,) = autoencoder.decode(z, return_dict=False)
    (whole,) = autoencoder(x, return_dict=False)
    assert torch.equal(first.mean, z)
    assert torch.equal(image[..., : size[0], : size[1]], whole)


@torch.inference_mode()
def test_samples_are_drawn_as_diffusers_draws_them() -> None:
    posterior = rpiae.AutoencoderRPiAE(tokenizer()).encode(pixels(32, 32)).latent_dist
    assert isinstance(posterior, DiagonalGaussianDistribution)
    first, again = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(first, posterior.mean + posterior.std * noise)
    point = rpiae.AutoencoderRPiAE(tokenizer("identity")).encode(pixels(32, 32)).latent_dist
    assert torch.equal(point.sample(), point.mode())


def test_its_config_says_what_diffusers_asks_for() -> None:
    model = tokenizer("conv-kl-half")
    config = rpiae.AutoencoderRPiAE(model).config
    assert config.latent_channels == 4
    assert 2 ** (len(config.block_out_channels) - 1) == 8
    assert config.sample_size == 32
    assert config.force_upcast is False
    assert config.latents_mean == pytest.approx(model.latent_mean.tolist())  # type: ignore[union-attr]
    assert config.latents_std == pytest.approx(model.latent_std.tolist())  # type: ignore[union-attr]
    plain = rpiae.AutoencoderRPiAE(tokenizer(norm=False)).config
    assert (plain.scaling_factor, plain.shift_factor) == (1, 0)
    assert plain.latents_mean is None
    assert plain.latents_std is None


def test_two_numbers_stand_for_the_whole_latent_norm() -> None:
    model = tokenizer()
    config = rpiae.AutoencoderRPiAE(model).config
    assert model.latent_mean is not None
    assert model.latent_std is not None
    noise = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0))
    latents = model.latent_mean + model.latent_std * noise
    scaled = (latents - config.shift_factor) * config.scaling_factor
    assert scaled.mean().item() == pytest.approx(0, abs=0.01)
    assert scaled.std().item() == pytest.approx(1, abs=0.01)


def test_no_number_of_halvings_is_said_where_there_is_none() -> None:
    decoder = {**DECODERS["vit"], "patch": 7}
    encoder = {**ENCODERS["timm"], "output_patch": 7}
    model = rpiae.build(encoder=encoder, bridge="vb4", decoder=decoder)
    assert "block_out_channels" not in rpiae.AutoencoderRPiAE(model).config


@torch.inference_mode()
def test_one_image_at_a_time_gives_the_same() -> None:
    autoencoder, x = rpiae.AutoencoderRPiAE(tokenizer()), pixels(29, 43, batch=3)
    seen: list[int] = []
    autoencoder.model.encoder.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    whole = autoencoder(x).sample
    autoencoder.enable_slicing()
    torch.testing.assert_close(autoencoder(x).sample, whole, rtol=0, atol=1e-5)
    assert seen == [3, 1, 1, 1]
    autoencoder.disable_slicing()
    autoencoder(x)
    assert seen[-1] == 3


@torch.inference_mode()
def test_large_images_go_in_tiles() -> None:
    autoencoder, x = rpiae.AutoencoderRPiAE(tokenizer()), pixels(70, 45)
    seen: set[tuple[int, ...]] = set()
    autoencoder.model.encoder.register_forward_hook(
        lambda _, given, __: seen.add(tuple(given[0].shape[-2:]))
    )
    autoencoder.enable_tiling()
    tiled = autoencoder.encode(x).latent_dist.mode()
    assert tiled.shape == (2, 4, 18, 12)
    assert seen == {(32, 32)}
    assert autoencoder.decode(tiled).sample.shape == (2, 3, 72, 48)
    small = pixels(32, 32)
    inside = autoencoder(small).sample
    autoencoder.disable_tiling()
    assert torch.equal(autoencoder(small).sample, inside)
    assert not torch.equal(autoencoder.encode(x).latent_dist.mode(), tiled)
    autoencoder.enable_tiling(tile_sample_min_size=16)
    autoencoder.encode(x)
    assert (16, 16) in seen


@torch.inference_mode()
def test_a_tile_that_has_every_pixel_is_the_image() -> None:
    autoencoder, x = rpiae.AutoencoderRPiAE(tokenizer()), pixels(29, 43)
    whole = autoencoder(x).sample
    autoencoder.enable_tiling(tile_sample_min_size=64)
    assert torch.equal(autoencoder(x).sample, whole)


def test_tiles_need_a_size() -> None:
    model = tokenizer()
    model.trained_size = 0
    with pytest.raises(UsageError, match="say that of a tile"):
        rpiae.AutoencoderRPiAE(model).enable_tiling()


def test_gradients_pass_in_both_directions() -> None:
    autoencoder = rpiae.AutoencoderRPiAE(tokenizer())
    x = pixels(32, 32).requires_grad_()
    autoencoder(x, sample_posterior=True).sample.square().mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in autoencoder.parameters())


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    autoencoder, x = rpiae.AutoencoderRPiAE(tokenizer()), pixels(32, 48)
    autoencoder.save_pretrained(tmp_path / "there")
    found = rpiae.AutoencoderRPiAE.from_pretrained(tmp_path, subfolder="there")
    assert not found.training
    assert {**found.config, "_name_or_path": ""} == {**autoencoder.config, "_name_or_path": ""}
    with torch.inference_mode():
        assert torch.equal(found(x).sample, autoencoder(x).sample)
        assert torch.equal(rpiae.load(tmp_path / "there").encode((x + 1) / 2).mode(), found.encode(x).latent_dist.mean)  # fmt: skip


def test_dtypes_are_kept_and_chosen(tmp_path: Path) -> None:
    autoencoder = rpiae.AutoencoderRPiAE(tokenizer())
    autoencoder.save_pretrained(tmp_path / "full")
    half = rpiae.AutoencoderRPiAE.from_pretrained(tmp_path / "full", torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.config.latents_mean == autoencoder.config.latents_mean
    with torch.inference_mode():
        latent = half.encode(pixels(32, 32).bfloat16()).latent_dist.sample()
        assert latent.dtype == torch.bfloat16
        image = half.decode(latent).sample
    assert image.dtype == torch.bfloat16
    assert image.isfinite().all()
    half.save_pretrained(tmp_path / "half")
    assert rpiae.AutoencoderRPiAE.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert autoencoder.to(torch.float64).dtype == torch.float64


def test_bfloat16_stays_near() -> None:
    model, x = tokenizer(), pixels(32, 32)
    with torch.inference_mode():
        full = rpiae.AutoencoderRPiAE(model)(x).sample
        half = rpiae.AutoencoderRPiAE(model.to(torch.bfloat16))(x.bfloat16()).sample
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.1)


def test_what_it_does_not_do_is_refused(tmp_path: Path) -> None:
    autoencoder = rpiae.AutoencoderRPiAE(tokenizer())
    with pytest.raises(UsageError, match="as safetensors"):
        autoencoder.save_pretrained(tmp_path / "a", safe_serialization=False)
    with pytest.raises(UsageError, match="as safetensors"):
        autoencoder.save_pretrained(tmp_path / "a", variant="fp16")
    assert not (tmp_path / "a").exists()
    autoencoder.save_pretrained(tmp_path / "a")
    with pytest.raises(UsageError, match="variant 'fp16'"):
        rpiae.AutoencoderRPiAE.from_pretrained(tmp_path / "a", variant="fp16")
    with pytest.raises(UsageError, match="quantization_config"):
        rpiae.AutoencoderRPiAE.from_pretrained(tmp_path / "a", quantization_config={})
    with pytest.raises(UsageError, match=r"\[-1, 1\], not torch\.uint8"):
        autoencoder.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(UsageError, match="latents must be tensors"):
        autoencoder.decode(torch.zeros(1, 5, 8, 8))


def test_it_goes_to_one_device(tmp_path: Path) -> None:
    rpiae.AutoencoderRPiAE(tokenizer()).save_pretrained(tmp_path)
    for device_map in ("cpu", torch.device("cpu"), {"": "cpu"}):
        found = rpiae.AutoencoderRPiAE.from_pretrained(tmp_path, device_map=device_map)
        assert found.device == torch.device("cpu")
    for strange in ({"encoder": "cpu", "decoder": "cpu"}, "nowhere"):
        with pytest.raises(UsageError):
            rpiae.AutoencoderRPiAE.from_pretrained(tmp_path, device_map=strange)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    rpiae.AutoencoderRPiAE(tokenizer()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        rpiae.AutoencoderRPiAE.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        rpiae.AutoencoderRPiAE.from_pretrained(tmp_path / "nowhere")


def test_pushed_it_is_loaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    autoencoder = rpiae.AutoencoderRPiAE(tokenizer())
    with hub_at_work(tmp_path / "cache") as hub:
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
        autoencoder.push_to_hub("user/name")
        files = {"config.json", "model.safetensors", "README.md"}
        assert set(hub.repositories["user/name"].files) == files
        autoencoder.save_pretrained(
            tmp_path / "there", push_to_hub=True, repo_id="user/other", subfolder="vae"
        )
        assert set(hub.repositories["user/other"].files) == {
            "vae/config.json", "vae/model.safetensors",
        }  # fmt: skip
        first = rpiae.AutoencoderRPiAE.from_pretrained("user/name", revision="main")
        second = rpiae.AutoencoderRPiAE.from_pretrained("user/other", subfolder="vae")
    x = pixels(32, 32)
    with torch.inference_mode():
        wanted = autoencoder(x).sample
        assert torch.equal(first(x).sample, wanted)
        assert torch.equal(second(x).sample, wanted)


def test_retrieve_latents_of_diffusers() -> None:
    img2img = pytest.importorskip(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
    )
    autoencoder, x = rpiae.AutoencoderRPiAE(tokenizer()), pixels(32, 48)
    with torch.inference_mode():
        output = autoencoder.encode(x)
        mode = img2img.retrieve_latents(output, sample_mode="argmax")
        sample = img2img.retrieve_latents(output, torch.Generator().manual_seed(1))
    assert torch.equal(mode, autoencoder.model.encode((x + 1) / 2).mode())
    assert torch.equal(sample, output.latent_dist.sample(torch.Generator().manual_seed(1)))


def test_a_training_loop_of_diffusers_learns_on_its_latents() -> None:
    """As in diffusers' examples/text_to_image/train_text_to_image.py."""
    torch.manual_seed(0)
    vae, x = rpiae.AutoencoderRPiAE(tokenizer()), pixels(32, 32, batch=4)
    vae.requires_grad_(False)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=8,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=10)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    words = torch.randn(4, 3, 8)
    losses = []
    for _ in range(8):
        with torch.no_grad():
            latents = vae.encode(x.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        timesteps = torch.arange(4) + 3
        noisy = scheduler.add_noise(latents, noise, timesteps)
        loss = F.mse_loss(unet(noisy, timesteps, words).sample, noise)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_flow_matching_loop_of_diffusers_learns_on_its_latents() -> None:
    """As in diffusers' examples/dreambooth/train_dreambooth_sd3.py."""
    torch.manual_seed(0)
    vae, x = rpiae.AutoencoderRPiAE(tokenizer()), pixels(32, 32, batch=4)
    vae.requires_grad_(False)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=16,
        pooled_projection_dim=8, pos_embed_max_size=8,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    optimiser = torch.optim.AdamW(transformer.parameters(), lr=3e-3)
    words, pooled = torch.randn(4, 3, 8), torch.randn(4, 8)
    index = torch.tensor([100, 300, 600, 900])
    sigmas = scheduler.sigmas[index].view(4, 1, 1, 1)
    losses = []
    for _ in range(8):
        with torch.no_grad():
            latents = vae.encode(x).latent_dist.sample(torch.Generator().manual_seed(0))
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        predicted = transformer(
            hidden_states=(1 - sigmas) * latents + sigmas * noise,
            timestep=scheduler.timesteps[index], encoder_hidden_states=words,
            pooled_projections=pooled, return_dict=False,
        )[0]  # fmt: skip
        loss = F.mse_loss(predicted, noise - latents)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def dit_pipeline(vae: Any) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    pipeline = diffusers.DiTPipeline(
        transformer=transformer.eval(), vae=vae, scheduler=diffusers.DDIMScheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipeline_of_diffusers_samples_saves_and_loads_with_it(tmp_path: Path) -> None:
    pipeline = dit_pipeline(rpiae.AutoencoderRPiAE(tokenizer()))

    def sampled(pipe: Any) -> Tensor:
        images = pipe(
            class_labels=[1, 7], num_inference_steps=2, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        return torch.from_numpy(images)

    images = sampled(pipeline)
    assert images.shape == (2, 32, 32, 3)
    assert 0 <= images.min() < images.max() <= 1
    pipeline.save_pretrained(tmp_path / "pipeline")
    assert {p.name for p in (tmp_path / "pipeline" / "vae").iterdir()} == {
        "config.json", "model.safetensors",
    }  # fmt: skip
    found = diffusers.DiTPipeline.from_pretrained(tmp_path / "pipeline")
    found.set_progress_bar_config(disable=True)
    assert type(found.vae) is rpiae.AutoencoderRPiAE
    assert torch.equal(sampled(found), images)


def test_a_pipeline_from_images_to_images_works_with_it() -> None:
    torch.manual_seed(0)
    vae = rpiae.AutoencoderRPiAE(tokenizer("conv-kl-half"))
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=8,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_tiling()
    pipeline.vae.enable_slicing()
    words = torch.randn(1, 3, 8)
    images = pipeline(
        image=(pixels(64, 48, batch=1) + 1) / 2, prompt_embeds=words, negative_prompt_embeds=-words,
        strength=1.0, num_inference_steps=2, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert pipeline.vae_scale_factor == 8
    assert images.shape == (1, 3, 64, 48)
    assert images.isfinite().all()

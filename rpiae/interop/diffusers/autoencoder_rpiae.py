"""Any tokenizer of images as an autoencoder of diffusers, in the calling convention of AutoencoderKL.

Nothing but what asks for it imports this module, as it imports diffusers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import MissingExtraError, UsageError
from rpiae.core.model.contracts import GaussianPosterior
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.geometry import at_least_fp32, pad_to
from rpiae.core.model.tiling import Tiling
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.devices import choose_device
from rpiae.core.runtime.names import shown

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.models.autoencoders.vae import (
        AutoencoderMixin,
        DecoderOutput,
        DiagonalGaussianDistribution,
    )
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from diffusers.utils.accelerate_utils import apply_forward_hook
except ImportError as error:
    raise MissingExtraError(
        f'AutoencoderRPiAE needs diffusers 0.37 or newer ({error}): pip install "rpiae[interop]"'
    ) from None

#: Options of diffusers' loading that say where weights lie meanwhile, which changes nothing here.
_ABOUT_MEMORY = frozenset({
    "low_cpu_mem_usage", "max_memory", "offload_folder", "offload_state_dict", "use_safetensors",
    "disable_mmap", "use_flashpack", "trust_remote_code",
})  # fmt: skip

#: log-variance of a latent that is certain, the least that diffusers has.
_CERTAIN = -30.0


class AutoencoderRPiAE(ModelMixin, AutoencoderMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """A tokenizer of images where diffusers' pipelines and training loops have an ``AutoencoderKL``.

    Pixels go from −1 to 1. What is given is computed in the tokenizer's dtype, and comes out in it. Images
    of any size are padded by reflection; what is decoded is as large as the padded image was, except in
    ``forward``, which gives images in their size.

    ``config`` says what diffusers' code asks autoencoders for: ``latent_channels``;
    ``block_out_channels``, of which only the number counts: one more than the halvings from pixels to
    latents, left out where these are no power of two; ``sample_size``, the side of the training crops;
    ``force_upcast``, false. Of a tokenizer with a latent_norm, ``latents_mean`` and ``latents_std`` are
    its mean and std per channel, and ``shift_factor`` and ``scaling_factor`` say it in two numbers, the
    mean over everything and one over the std around it; without one they are None, 0 and 1. Nothing of
    it is applied here: as everywhere in diffusers, ``encode`` gives raw latents and ``decode`` takes them.

    Args:
        model: the tokenizer, which is shared, not copied.

    Raises:
        UsageError: if it takes several frames per token, so that it is not one of images.

    Source: the convention is that of diffusers' AutoencoderKL.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = False

    def __init__(self, model: RPiAE) -> None:
        super().__init__()
        if model.decoder.patch[0] > 1:
            raise UsageError(
                f"this tokenizer takes {model.decoder.patch[0]} frames per token, and diffusers' "
                "AutoencoderKL is one of images"
            )
        self.model = model
        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_min_size = model.trained_size or None
        self.register_to_config(**_config_of(model))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device_map: Any = None,
        variant: str | None = None,
        **options: Any,
    ) -> AutoencoderRPiAE:
        """The autoencoder of a saved tokenizer, whole or not at all, in eval mode.

        Args:
            pretrained_model_name_or_path: a tokenizer's folder, or its run's, or ``user/name`` on the hub,
                as ``rpiae.load`` takes it.
            revision: branch, tag or commit on the hub.
            subfolder: below the folder, or in the repository.
            torch_dtype, dtype: of the weights; as saved where neither is given.
            device_map: a device, ``{"": device}`` or ``"auto"``; the CPU where it is not given.
            variant: None; there is one set of weights.
            options: of diffusers about memory while loading, which make no difference.

        Raises:
            CheckpointError: if there is no tokenizer, or it is damaged.
            FetchError: if it is on the hub and cannot be had.
            UsageError: if an option is unknown, or makes no sense for it.
        """
        if variant is not None:
            raise UsageError(f"a tokenizer has one set of weights, and no variant {shown(variant)}")
        if unknown := sorted(options.keys() - _ABOUT_MEMORY):
            raise UsageError(
                f"AutoencoderRPiAE is not loaded with {unknown[0]}: it takes revision, subfolder, torch_dtype "
                "and device_map"
            )
        device = _device(device_map)
        model = load_tokenizer(
            pretrained_model_name_or_path, revision=revision or "", subfolder=subfolder or ""
        )
        autoencoder: AutoencoderRPiAE = cls(model).eval()
        autoencoder.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        autoencoder.model.to(device=device, dtype=dtype or torch_dtype)
        return autoencoder

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write the tokenizer's folder, as ``rpiae.save`` does.

        Args:
            save_directory: the folder.
            is_main_process: others write nothing.
            safe_serialization, variant: True and None; there is one way.
            push_to_hub: whether it is pushed too; ``options`` are those of ``push_to_hub``, of which
                ``repo_id`` is the folder's name where it is not given.
            options: without ``push_to_hub``, diffusers' about files, which make no difference.

        Raises:
            UsageError: if it is to be a pickle or a variant.
            CheckpointError: if the folder cannot be written.
        """
        if not safe_serialization or variant is not None:
            raise UsageError("a tokenizer is saved as safetensors, without variants")
        if is_main_process:
            save_tokenizer(self.model, save_directory)
        if push_to_hub:
            repository = options.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repository, **options)

    def enable_tiling(self, tile_sample_min_size: int | None = None) -> None:
        """Encode and decode large images in overlapping tiles.

        Args:
            tile_sample_min_size: side of a tile in pixels; that of the training crops where not given.

        Raises:
            UsageError: if neither says it.
        """
        self.tile_sample_min_size = tile_sample_min_size or self.tile_sample_min_size
        if not self.tile_sample_min_size:
            raise UsageError(
                "the tokenizer does not know the side of its training crops: say that of a tile, "
                "enable_tiling(tile_sample_min_size=256)"
            )
        super().enable_tiling()

    @apply_forward_hook  # type: ignore[untyped-decorator]  # diffusers has no types
    def encode(
        self, x: Float[Tensor, "b 3 height width"], return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Posterior over the latents (b, C, h, w) of images.

        A tokenizer whose latents are points gives a distribution without variance.

        Args:
            x: in [−1, 1].
            return_dict: whether it comes as ``latent_dist`` of an output, or first of a tuple.

        Raises:
            UsageError: if these are no images.
        """
        _check_images(x)
        moments = torch.cat([self._moments(part) for part in self._slices(x)]).to(self.dtype)
        certain = not self.model.bridge.gaussian
        posterior = DiagonalGaussianDistribution(moments, deterministic=certain)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]  # diffusers has no types
    def decode(
        self,
        z: Float[Tensor, "b c h w"],
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Float[Tensor, "b 3 height width"]]:
        """Images of latents, about in [−1, 1], not clamped.

        Args:
            z: raw latents, not normalised.
            return_dict: whether they come as ``sample`` of an output, or first of a tuple.
            generator: for other autoencoders; nothing is drawn here.

        Raises:
            UsageError: if these are no latents of the tokenizer.
        """
        pixels = torch.cat([self._pixels(part) for part in self._slices(z)])
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    def forward(
        self,
        sample: Float[Tensor, "b 3 height width"],
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Float[Tensor, "b 3 height width"]]:
        """Images through their latents and back, in their size; not clamped.

        Args:
            sample: in [−1, 1].
            sample_posterior: whether latents are drawn, rather than the likeliest ones.
            return_dict: see ``decode``.
            generator: draws them.

        Raises:
            UsageError: if these are no images.
        """
        posterior = self.encode(sample).latent_dist
        latent = posterior.sample(generator) if sample_posterior else posterior.mode()
        height, width = sample.shape[-2:]
        pixels = self.decode(latent).sample[..., :height, :width]
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    def _slices(self, batch: Tensor) -> tuple[Tensor, ...]:
        """What goes through the tokenizer at once."""
        return torch.split(batch, 1 if self.use_slicing else max(1, len(batch)))

    def _tiling(self, size: tuple[int, int]) -> Tiling:
        """Tiles over pixels, a multiple of the step between latents; one where there is no tiling."""
        tile = self.tile_sample_min_size if self.use_tiling else None
        return Tiling.over(size, step=_step(self.model), tile=tile)

    def _moments(self, x: Tensor) -> Tensor:
        """Mean and log-variance of the latents, (b, 2·C, h, w)."""
        images = (at_least_fp32(x) + 1) / 2
        _, height, width = self.model.geometry(*images.shape[-2:]).padded
        tiling = self._tiling((height, width))
        tiles = tiling.tiles(pad_to(images, (height, width)))
        posterior = tiling.stitched([self.model.encode(tile) for tile in tiles])
        if isinstance(posterior, GaussianPosterior):
            return torch.cat([posterior.mean, posterior.logvar], dim=1)
        point = posterior.mode()
        return torch.cat([point, torch.full_like(point, _CERTAIN)], dim=1)

    def _pixels(self, z: Tensor) -> Tensor:
        rows, columns = _step(self.model)
        tiling = self._tiling((z.shape[-2] * rows, z.shape[-1] * columns))
        pixels = tiling.blended([self.model.decode(tile) for tile in tiling.latent_tiles(z)])
        return pixels * 2 - 1


def _device(device_map: Any) -> torch.device | None:
    """The one device of a map of diffusers."""
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise UsageError(
                f"a tokenizer goes to one device as a whole, not to {shown(device_map)}"
            )
        device_map = device_map[""]
    if isinstance(device_map, int):
        device_map = f"cuda:{device_map}"
    if isinstance(device_map, torch.device) and device_map.type != "cuda":
        return device_map
    return None if device_map is None else choose_device(str(device_map))


def _step(model: RPiAE) -> tuple[int, int]:
    """Pixels from a latent to the one below, and to the one beside it."""
    _, rows, columns = model.decoder.patch
    return rows * model.bridge.downsampling, columns * model.bridge.downsampling


def _config_of(model: RPiAE) -> dict[str, Any]:
    """What diffusers' code asks autoencoders for."""
    channels, (rows, columns) = model.bridge.latent_channels, _step(model)
    scaling, shift, mean, std = 1.0, 0.0, None, None
    if model.latent_mean is not None and model.latent_std is not None:
        means, variances = model.latent_mean.double(), model.latent_std.double().square()
        shift = means.mean().item()
        scaling = (variances + (means - shift).square()).mean().rsqrt().item()
        mean, std = model.latent_mean.tolist(), model.latent_std.tolist()
    config: dict[str, Any] = {
        "latent_channels": channels, "sample_size": model.trained_size or None,
        "scaling_factor": scaling, "shift_factor": shift, "latents_mean": mean, "latents_std": std,
        "force_upcast": False,
    }  # fmt: skip
    if rows == columns and rows.bit_count() == 1:
        config["block_out_channels"] = (channels,) * rows.bit_length()
    return config


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise UsageError(
            f"images must be float tensors (batch, 3, height, width) in [-1, 1], not {x.dtype} "
            f"{tuple(x.shape)}"
        )

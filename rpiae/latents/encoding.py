"""Images to latents, and their statistics over a dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from attrs import frozen
from torch import Tensor

from rpiae.core.config.tree import unparse
from rpiae.core.errors import DataError, RunError, UsageError
from rpiae.core.model.contracts import GaussianPosterior, Posterior
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.draws import SampleDraws
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.checkpoint import digest
from rpiae.core.training.feed import Feed
from rpiae.data.listed import EveryImage
from rpiae.data.loading import Reports
from rpiae.data.orders import sampled
from rpiae.data.video.listed import EveryClip
from rpiae.latents.layout import PosteriorUse, Settings
from rpiae.latents.statistics import ChannelStatistics

#: Tokens per forward pass where no batch size is given.
TOKENS_PER_BATCH = 8192


def tokenizer_digest(model: RPiAE) -> str:
    """sha256 of what the latents of a tokenizer depend on: its parts' configs and weights.

    latent_norm does not count, as it is never applied here.
    """
    assert model.config is not None
    parts = (model.config.encoder, model.config.bridge, model.config.decoder)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in ("latent_mean", "latent_std")
    }
    return digest({"parts": [unparse(part) for part in parts], "state": state})


def batch_size_for(model: RPiAE, image_size: int, frames: int = 1) -> int:
    """Images, or clips of so many frames, per forward pass where no batch size is given."""
    tokens = math.prod(model.geometry(image_size, image_size, frames).grid)
    return max(1, TOKENS_PER_BATCH // tokens)


def check_posterior(model: RPiAE, posterior: PosteriorUse) -> None:
    """Refuse a use that the bridge's posterior does not have.

    Raises:
        UsageError: if it is no Gaussian and moments are asked for.
    """
    if posterior == "moments" and not model.bridge.gaussian:
        assert model.config is not None
        raise UsageError(
            f"bridge {model.config.bridge.label!r} has no Gaussian posterior, so there are no "
            "moments: leave out --moments"
        )


@torch.no_grad()
def encode_batch(
    model: RPiAE, images: Tensor, positions: Sequence[int], settings: Settings, runtime: Runtime
) -> dict[str, Tensor]:
    """The tensors of a shard for some images, in fp32 on CPU.

    Args:
        model: what encodes.
        images: (b, 3, s, s), or clips (b, 3, t, s, s), in [0, 1].
        positions: of the images in their source; they name the random draws.
        settings: what is stored.
        runtime: device and precision.
    """
    found: dict[str, Tensor] = {}
    for suffix in ("", "_flipped") if settings.flip else ("",):
        with runtime.autocast():
            posterior = model.encode(images.flip(-1) if suffix else images)
        values = _values(posterior, positions, settings, f"posterior{suffix}")
        found |= {f"{name}{suffix}": v.float().cpu().contiguous() for name, v in values.items()}
    return found


def _values(
    posterior: Posterior, positions: Sequence[int], settings: Settings, purpose: str
) -> dict[str, Tensor]:
    def noise(mode: Tensor) -> Tensor:
        return SampleDraws(settings.seed, ("latents",), positions).normal_like(mode, purpose)

    return stored_values(posterior, settings, noise)


def stored_values(
    posterior: Posterior, settings: Settings, noise: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The tensors that are stored of a posterior, by their names.

    Args:
        posterior: over latents.
        settings: what is stored.
        noise: gives a sample's noise, for latents like the mode.
    """
    if settings.posterior == "moments":
        assert isinstance(posterior, GaussianPosterior)
        return {"mean": posterior.mean, "logvar": posterior.logvar}
    mode = posterior.mode()
    if settings.posterior == "mode":
        return {"latent": mode}
    return {"latent": posterior.sample(noise(mode))}


def add_stored(found: ChannelStatistics, tensors: Mapping[str, Tensor], settings: Settings) -> None:
    """Add what is stored, mirrored images included; with moments, of samples.

    Args:
        found: what it is added to.
        tensors: (b, C, …) by their names.
        settings: what is stored.
    """
    for suffix in ("", "_flipped") if settings.flip else ("",):
        if settings.posterior == "moments":
            variance = tensors[f"logvar{suffix}"].double().exp()
            found.add(tensors[f"mean{suffix}"], variance=variance)
        else:
            found.add(tensors[f"latent{suffix}"])


def check_finite(tensors: dict[str, Tensor], names: Sequence[str]) -> None:
    """Refuse latents that are not finite.

    Raises:
        RunError: if not, with the image.
    """
    for kind, tensor in tensors.items():
        fine = tensor.isfinite().flatten(1).all(dim=1)
        if not fine.all():
            bad = int((~fine).nonzero()[0])
            raise RunError(
                f"the {kind.replace('_', ' ')} of {names[bad]} is not finite as "
                f"{str(tensor.dtype).removeprefix('torch.')}: check the tokenizer, or store "
                "--dtype fp32"
            )


@frozen(kw_only=True)
class Measured:
    """Progress of ``measure_latents``.

    Attributes:
        done, total: images.
        skipped: images that could not be used, in words; new ones only.
    """

    done: int
    total: int
    skipped: tuple[str, ...]


def measure_latents(
    model: RPiAE,
    images: EveryImage,
    *,
    runtime: Runtime,
    num_images: int | None = None,
    posterior: Literal["mode", "sample"] = "mode",
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[Measured], None] = lambda _: None,
) -> ChannelStatistics:
    """Statistics of a dataset's latents, without storing these.

    Args:
        model: what encodes.
        images: the dataset, or the clips of one.
        runtime: device and precision.
        num_images: how many are looked at, drawn at random but always the same; all where not given.
        posterior: mode, or samples from ``seed``.
        seed: of the samples.
        batch_size: images per forward pass.
        progress: is told after every batch.

    Raises:
        DataError: if no image can be used.
        UsageError: if ``num_images`` is not positive.
    """
    if num_images is not None and num_images < 1:
        raise UsageError(f"--images must be at least 1, got {num_images}")
    settings = Settings(posterior=posterior, seed=seed)
    model = model.to(runtime.device)
    chosen = sampled(len(images), num_images or len(images))
    total = len(chosen)
    frames = images.frames if isinstance(images, EveryClip) else 1
    size = batch_size or batch_size_for(model, images.image_size, frames)
    found = ChannelStatistics(model.bridge.latent_channels)
    done, reports = 0, Reports()
    batches = images.batches([chosen[i : i + size] for i in range(0, total, size)])
    for batch in Feed(batches, runtime.device):
        if batch.samples:
            latents = encode_batch(model, batch.inputs, batch.samples, settings, runtime)
            check_finite(latents, [images.name(position) for position in batch.samples])
            found.add(latents["latent"])
        done += len(batch.samples) + len(batch.skipped)
        progress(Measured(done=done, total=total, skipped=reports.fresh(batch.skipped)))
    if not found.count:
        raise DataError(images.none_usable())
    return found


def positions_in_batches(shard: range, size: int) -> Iterator[list[int]]:
    """A shard's positions, ``size`` at a time."""
    for start in range(shard.start, shard.stop, size):
        yield list(range(start, min(start + size, shard.stop)))

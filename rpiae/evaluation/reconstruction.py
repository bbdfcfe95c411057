"""Held-out reconstruction, the yardsticks it is measured against, and drift from the pivot."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from attrs import frozen
from jaxtyping import Float
from torch import Tensor

from rpiae.core.config.recipe import StageConfig
from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import HeldOut, Replica
from rpiae.core.model.geometry import patchify, to_8_bits, unpatchify
from rpiae.core.model.tokenizer import RPiAE

#: PSNR in dB that an image without any error counts as; 8-bit images that differ reach at most 99.
EXACT = 100.0

#: Side of SSIM's Gaussian window, in pixels; a smaller image has no SSIM.
SSIM_WINDOW = 11

#: Share of the most lively latent channel's standard deviation below which one counts as dead.
DEAD = 0.01

#: Tokens per forward pass; bounds the memory of an evaluation.
TOKENS_PER_BATCH = 8192


@frozen(kw_only=True)
class Scores:
    """Held-out scores, as means over photographs and for each of them.

    Attributes:
        psnr: dB, from 8-bit-rounded output, mean over photographs.
        ssim: mean over photographs; None where all are too small to have one.
        photographs: per photograph, its psnr and, where it has one, its ssim.
    """

    psnr: float
    ssim: float | None
    photographs: Mapping[str, Mapping[str, float]]


def score(reconstructions: Float[Tensor, "n 3 s s"], held_out: HeldOut) -> Scores:
    """PSNR and SSIM per photograph; tiles of one photograph are put together first."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    made = photographs(to_8_bits(reconstructions), held_out)
    wanted = photographs(held_out.images, held_out)
    found = {}
    for name, image in made.items():
        error = F.mse_loss(image.double(), wanted[name].double()).item()
        found[name] = {"psnr": psnr_of(error)}
        if min(image.shape[-2:]) >= SSIM_WINDOW:
            similarity = structural_similarity_index_measure(
                image[None], wanted[name][None], data_range=1.0
            )
            assert isinstance(similarity, Tensor)
            found[name]["ssim"] = similarity.item()
    similarities = [each["ssim"] for each in found.values() if "ssim" in each]
    return Scores(
        psnr=sum(each["psnr"] for each in found.values()) / len(found),
        ssim=sum(similarities) / len(similarities) if similarities else None,
        photographs=found,
    )


def psnr_of(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1, at most ``EXACT``; NaN for NaN."""
    return EXACT if mean_squared_error < 1e-10 else -10 * math.log10(mean_squared_error)


def photographs(images: Float[Tensor, "n 3 s s"], held_out: HeldOut) -> dict[str, Tensor]:
    """Photograph → (3, H, W), tiles put together row by row."""
    found = {}
    for name in dict.fromkeys(held_out.groups):
        chosen = [i for i, group in enumerate(held_out.groups) if group == name]
        tiles = images[chosen]
        n, c, h, w = tiles.shape
        columns = held_out.columns[name]
        rows = tiles.reshape(n // columns, columns, c, h, w).permute(2, 0, 3, 1, 4)
        found[name] = rows.reshape(c, n // columns * h, columns * w)
    return found


@torch.no_grad()
def reconstruct_held_out(
    model: RPiAE, held_out: HeldOut, *, use_bridge: bool = True
) -> Float[Tensor, "n 3 s s"]:
    """Reconstructions of all held-out images, on CPU; without the bridge where a stage has none."""

    def one(images: Tensor) -> Tensor:
        if use_bridge:
            return model.reconstruct(images)
        size = (images.shape[-2], images.shape[-1])
        return model.decode_features(model.features(images), size=size).clamp(0, 1)

    return _batched(one, held_out.images, model)


@torch.no_grad()
def drift(model: RPiAE, replica: Replica, images: Float[Tensor, "n 3 s s"]) -> float:
    """Mean 1 − cosine between the encoder's tokens and the pivot's, over all tokens."""

    def one(batch: Tensor) -> Tensor:
        ours, pivot = model.features(batch).tokens, replica.features(batch).tokens
        return 1 - F.cosine_similarity(ours.float(), pivot.float(), dim=-1)

    return _batched(one, images, model).mean().item()


def mean_colour(images: Float[Tensor, "n 3 s s"], *, patch: int) -> Float[Tensor, "n 3 s s"]:
    """Every patch replaced by its mean colour: what three numbers per token can say."""
    return F.interpolate(
        F.avg_pool2d(images, patch, ceil_mode=True), scale_factor=patch, mode="nearest"
    )[..., : images.shape[-2], : images.shape[-1]]


def linear_code(
    training: Float[Tensor, "m 3 s s"],
    images: Float[Tensor, "n 3 s s"],
    *,
    patch: int,
    channels: int,
) -> Float[Tensor, "n 3 s s"]:
    """Images through the best linear code of ``channels`` numbers per patch, fitted on others.

    Principal components of the training patches; with ``channels`` of a patch's own size or more,
    the code is lossless.
    """
    from sklearn.decomposition import PCA

    size = images.shape[-1] // patch * patch
    square = (1, patch, patch)
    values = patchify(as_clip(images[..., :size, :size]), square)
    dimensions = values.shape[-1]
    if channels >= dimensions:
        return images
    fitted = patchify(as_clip(training[..., :size, :size]), square).flatten(0, 1)
    pca = PCA(n_components=min(channels, len(fitted)), random_state=0).fit(fitted.numpy())
    coded = pca.inverse_transform(pca.transform(values.flatten(0, 1).numpy()))
    grid = (1, size // patch, size // patch)
    found = images.clone()
    found[..., :size, :size] = unpatchify(
        torch.from_numpy(coded).float().view_as(values), grid, square
    ).squeeze(2)
    return found


def stage_metrics(
    model: RPiAE,
    stage: StageConfig,
    *,
    held_out: HeldOut,
    replica: Replica,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> dict[str, float]:
    """psnr, ssim, drift and dead channels of a model on a stage's own path; the scores themselves in fp32.

    Images too small for it have no ssim.
    """
    with autocast():
        made = reconstruct_held_out(model, held_out, use_bridge=stage.use_bridge)
        drifted = drift(model, replica, held_out.images)
        dead = dead_channels(model, held_out.images) if stage.use_bridge else 0
    scores = score(made, held_out)
    found = {"psnr": scores.psnr, "drift": drifted}
    if scores.ssim is not None:
        found["ssim"] = scores.ssim
    return found | ({"dead_channels": float(dead)} if stage.use_bridge else {})


@torch.no_grad()
def dead_channels(model: RPiAE, images: Float[Tensor, "n 3 s s"]) -> int:
    """Latent channels whose mode varies, over images and places, by less than ``DEAD`` of the most
    lively one's standard deviation."""
    latents = _batched(lambda batch: model.posterior(model.features(batch)).mode(), images, model)
    spread = latents.transpose(0, 1).flatten(1).std(dim=1)
    return int((spread < DEAD * spread.max()).sum())


def _batched(function: Callable[[Tensor], Tensor], images: Tensor, model: RPiAE) -> Tensor:
    tokens = math.prod(model.geometry(images.shape[-2], images.shape[-1]).grid)
    device = model.mean.device
    size = max(1, TOKENS_PER_BATCH // tokens)
    return torch.cat(
        [function(batch.to(device)).float().cpu() for batch in torch.split(images, size)]
    )

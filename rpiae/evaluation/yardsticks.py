"""What reconstructions are measured against: codes of the same size that know nothing but pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from rpiae.core.model.clips import as_clip
from rpiae.core.model.folding import per_frame
from rpiae.core.model.geometry import patchify, unpatchify
from rpiae.evaluation.interpolation import interpolated, kept_frames


class MeanColour:
    """Every patch replaced by its mean colour: what three numbers per token can say.

    Args:
        patch: side of a patch, in pixels.
    """

    def __init__(self, *, patch: int) -> None:
        self._patch = patch

    def __call__(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 3 s s"]:
        """Images through the code and back."""
        return F.interpolate(
            F.avg_pool2d(images, self._patch, ceil_mode=True),
            scale_factor=self._patch,
            mode="nearest",
        )[..., : images.shape[-2], : images.shape[-1]]


class OverTime:
    """A code of images for clips too: of every n-th frame, with straight lines in between.

    Args:
        code: of images.
        every: n; 1 has every frame coded.
    """

    def __init__(self, code: Callable[[Tensor], Tensor], *, every: int = 1) -> None:
        self._code = code
        self._every = every

    def __call__(self, images: Float[Tensor, "n 3 ..."]) -> Float[Tensor, "n 3 ..."]:
        """Images or clips through the code and back."""
        if images.ndim == 4:
            return self._code(images)
        made = per_frame(self._code, kept_frames(images, self._every))
        return interpolated(made, self._every, images.shape[2])


class LinearCode:
    """The best linear code of some numbers per patch: principal components of other images' patches.

    With as many numbers as a patch has, or more, the code is lossless.

    Args:
        training: images that the components are of.
        patch: side of a patch, in pixels.
        channels: numbers per patch.
    """

    def __init__(self, training: Float[Tensor, "m 3 s s"], *, patch: int, channels: int) -> None:
        self._patch = patch
        self._square = (1, patch, patch)
        self._pca: PCA | None = None
        fitted = self._patches(training).flatten(0, 1)
        if channels < fitted.shape[-1]:
            components = min(channels, len(fitted))
            self._pca = PCA(n_components=components, random_state=0).fit(fitted.numpy())

    def __call__(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 3 s s"]:
        """Images through the code and back; an edge that holds no whole patch stays as it is."""
        if self._pca is None:
            return images
        values = self._patches(images.cpu())
        coded = self._pca.inverse_transform(self._pca.transform(values.flatten(0, 1).numpy()))
        rows, columns = (side // self._patch for side in images.shape[-2:])
        made = images.clone()
        made[..., : rows * self._patch, : columns * self._patch] = (
            unpatchify(
                torch.from_numpy(coded).float().view_as(values), (1, rows, columns), self._square
            )
            .squeeze(2)
            .to(images.device)
        )
        return made

    def _patches(self, images: Tensor) -> Tensor:
        height, width = (side // self._patch * self._patch for side in images.shape[-2:])
        return patchify(as_clip(images[..., :height, :width]), self._square)

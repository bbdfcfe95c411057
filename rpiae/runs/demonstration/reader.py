"""A support vector machine that reads pictures of handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from rpiae.data.digits import SIDE, WHITE, DigitsDataset, Portion


class DigitReader:
    """A support vector machine on 8×8 grey values from 0 to 16, fitted to the scans of a portion.

    It is the classifier of scikit-learn's own example of these data (``SVC(gamma=0.001)``).

    Args:
        portion: of the dataset ``digits``.
    """

    def __init__(self, portion: Portion = "train") -> None:
        from sklearn.svm import SVC

        images, labels = scans(portion, SIDE)
        self._machine = SVC(gamma=0.001).fit(grey_values(images), labels)

    def read(self, images: Float[Tensor, "n 3 s s"]) -> NDArray[np.int64]:
        """The digit that each of some images in [0, 1] is read as."""
        found: NDArray[np.int64] = self._machine.predict(grey_values(images)).astype(np.int64)
        return found

    def share(self, images: Float[Tensor, "n 3 s s"], digits: Sequence[int]) -> float:
        """Share of the images that are read as the digits that they should show."""
        return float((self.read(images) == np.asarray(digits)).mean())


def scans(portion: Portion, side: int) -> tuple[Float[Tensor, "n 3 s s"], list[int]]:
    """The scans of a portion as images in [0, 1] of a side in pixels, and their digits."""
    listed = DigitsDataset(image_size=side, portion=portion).every_image()
    crops = [listed[index] for index in range(len(listed))]
    images = torch.stack([crop.pixels for crop in crops if crop.pixels is not None])
    return images.float() / 255, [crop.label for crop in crops]


def grey_values(images: Float[Tensor, "n 3 s s"]) -> NDArray[np.float32]:
    """Images in [0, 1] as the scans that they would be: (n, 64), from 0 to 16; means over channels and
    over the squares that stand for a pixel."""
    small = F.adaptive_avg_pool2d(images.float().cpu().mean(dim=1, keepdim=True), SIDE)
    return (small.flatten(1) * WHITE).numpy()

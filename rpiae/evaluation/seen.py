"""Images as metrics see them, and how feature spaces describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from rpiae.evaluation.spaces import FeatureSpace


class Seen:
    """Some images, each described once in every feature space that metrics ask for.

    Args:
        images: (b, 3, h, w), or clips (b, 3, t, h, w), in [0, 1].
        labels: of the images, −1 where there is none.
        positions: of the images in their set; they name the images.
        label_names: name of every label, by its number; empty where unknown.
    """

    def __init__(
        self,
        images: Float[Tensor, "b 3 ..."],
        *,
        labels: Int[Tensor, " b"],
        positions: Int[Tensor, " b"],
        label_names: Sequence[str] = (),
    ) -> None:
        self.images = images
        self.labels = labels
        self.positions = positions
        self.label_names = label_names
        self._described: dict[tuple[int, str], Tensor] = {}

    @property
    def frames(self) -> Any:
        """What metrics of images see of this: images are what they are."""
        return self

    def described(self, space: FeatureSpace, which: str = "images") -> Float[Tensor, "b d"]:
        """Images in a feature space of images; several metrics may ask.

        Args:
            space: it is moved to where the images are.
            which: the attribute that holds the images.
        """
        key = (id(space), which)
        if key not in self._described:
            space.to(self.images.device)
            self._described[key] = space(getattr(self, which))
        return self._described[key]

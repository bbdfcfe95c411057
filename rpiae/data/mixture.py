"""Weighted mixtures of datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import ClipDataset, HeldOut, StageSteps
from rpiae.data.crops import Pool
from rpiae.data.image_dataset import CropDataset, ImageDataset
from rpiae.data.loading import chosen_workers
from rpiae.data.orders import EpochOrder, MixtureOrder


class MixtureDataset(CropDataset):
    """Images of several datasets, drawn with given weights.

    Which dataset sample k of a stage comes from depends on (seed, stage, k) and the weights alone;
    each dataset shows its images in epochs of its own.

    Args:
        sources: the datasets, all with crops of ``image_size``.
        names: what each is called; distinct.
        weights: how often each is drawn, relative to the others; positive.
        image_size: side of the crops, in pixels.
        workers: processes that load images.
        epoch_images: images of an epoch; all training images of all sources where not given.

    Raises:
        UsageError: if there are no sources, a weight is not positive, or a source is a stream, has
            aspect-ratio buckets, or crops of another size.
    """

    def __init__(
        self,
        *,
        sources: Sequence[object],
        names: Sequence[str],
        weights: Sequence[float],
        image_size: int,
        workers: int | None = None,
        epoch_images: int | None = None,
    ) -> None:
        if not sources:
            raise UsageError("data.sources is empty: a mixture needs at least one dataset")
        self._sources = [
            _mixable(source, f"data.sources[{i}]", image_size) for i, source in enumerate(sources)
        ]
        for i, weight in enumerate(weights):
            if weight <= 0:
                raise UsageError(f"data.sources[{i}].weight must be above 0, got {weight}")
        self._names = names
        self._weights = weights
        total = sum(source.num_images for source in self._sources)
        super().__init__(
            num_images=epoch_images or total,
            image_size=image_size,
            workers=chosen_workers(workers),
            notices=[text for source in self._sources for text in source.notices],
        )

    def held_out(self) -> HeldOut:
        """The held-out images of all sources; each group is named after its source.

        Raises:
            DataError: if a source has none that can be used.
        """
        sets = [source.held_out() for source in self._sources]
        named = list(zip(self._names, sets, strict=True))
        return HeldOut(
            torch.cat([held.images for held in sets]),
            tuple(f"{name}/{group}" for name, held in named for group in held.groups),
            {f"{name}/{g}": n for name, held in named for g, n in held.columns.items()},
        )

    def square_pools(self) -> list[Pool]:
        return [pool for source in self._sources for pool in source.square_pools()]

    def _place(self, steps: StageSteps) -> Callable[[int], tuple[int, int]]:
        mixture = MixtureOrder(steps.seed, steps.stage, self._weights)
        orders = [
            EpochOrder(steps.seed, steps.stage, source.num_images, f"order-{i}")
            for i, source in enumerate(self._sources)
        ]

        def place(sample: int) -> tuple[int, int]:
            source, number = mixture.place(sample)
            return source, orders[source].image(number)

        return place

    def _draws(self) -> Callable[[torch.Generator], tuple[int, int]]:
        weights = torch.tensor(self._weights)
        counts = [source.num_images for source in self._sources]

        def draw(draws: torch.Generator) -> tuple[int, int]:
            source = int(torch.multinomial(weights, 1, generator=draws))
            return source, int(torch.randint(counts[source], (), generator=draws))

        return draw


def _mixable(source: object, path: str, image_size: int) -> ImageDataset:
    if isinstance(source, ClipDataset):
        raise UsageError(
            f"{path} is of videos, which cannot be mixed: name one folder of all videos, and let a "
            "share of the steps learn from their single frames (recipe.stages[i].image_share)"
        )
    if not isinstance(source, ImageDataset):
        raise UsageError(
            f"{path} is a {type(source).__name__}, which cannot be mixed: a mixture needs datasets "
            "whose images can be read in any order (data.streaming = false, and no other mixture)"
        )
    if source.has_buckets:
        raise UsageError(
            f"{path} has aspect-ratio buckets, which a mixture does not have: leave out its buckets"
        )
    if source.image_size != image_size:
        raise UsageError(
            f"{path} has crops of {source.image_size} pixels and the mixture of {image_size}: leave "
            "out the source's image_size"
        )
    return source

"""Checks of a dataset against ``rpiae.core.model.contracts.Dataset``."""

from __future__ import annotations

import torch
from torch import Tensor

from rpiae.core.config.parts import DatasetConfig
from rpiae.core.model.contracts import Batch, ClipDataset, Dataset, StageSteps
from rpiae.core.training.feed import as_floats


def check_dataset(config: DatasetConfig) -> None:
    """A dataset's images or clips, their range and shapes, and that a step depends on nothing but its number.

    So a run can be resumed in the middle of a stage, and split over processes.

    Args:
        config: of a small dataset, its wired fields filled.
    """
    dataset = config.build()
    assert isinstance(dataset, Dataset), f"{type(dataset).__name__} does not fit Dataset"
    assert dataset.num_images > 0
    notices = dataset.notices
    assert all(isinstance(text, str) for text in notices), "notices are no texts"
    size = dataset.image_size
    shape = _shape(dataset)
    whole = _batches(dataset, start=0, steps=3)
    assert len(whole) == 3, "batches() gives another number of steps"
    assert set(notices) <= set(whole[0].notices), "the first batch does not say the notices"
    for step, batch in enumerate(whole):
        _check_images(as_floats(batch.inputs), (4, *shape), "a batch")
        assert batch.samples == tuple(range(4 * step, 4 * step + 4)), "samples are not s·b, …"
    later = _batches(dataset, start=2, steps=3)
    assert len(later) == 1, "batches() does not begin at start"
    assert torch.equal(later[0].inputs, whole[2].inputs), "a step depends on those before it"
    again = _batches(config.build(), start=0, steps=1)
    assert torch.equal(again[0].inputs, whole[0].inputs), "the same seed gives other images"
    shares = [
        _batches(dataset, start=1, steps=2, rank=rank, num_processes=3)[0] for rank in range(3)
    ]
    together = torch.cat([batch.inputs for batch in shares])
    assert torch.equal(together, whole[1].inputs), "three processes see other images than one"
    assert sum((batch.samples for batch in shares), ()) == whole[1].samples
    if isinstance(dataset, ClipDataset):
        _check_single_frames(dataset)
    _check_held_out(dataset)
    crops = dataset.crops(3, seed=0)
    _check_images(crops, (3, 3, size, size), "crops()")
    assert torch.equal(crops, dataset.crops(3, seed=0)), "crops() is not repeatable"
    assert dataset.crops(0, seed=0).shape[0] == 0


def _shape(dataset: Dataset) -> tuple[int, ...]:
    """The shape of what it shows: an image, or a clip."""
    size = dataset.image_size
    return (3, dataset.frames, size, size) if isinstance(dataset, ClipDataset) else (3, size, size)


def _batches(dataset: Dataset, *, image_share: float = 0.0, **steps: int) -> list[Batch]:
    return list(
        dataset.batches(
            StageSteps(seed=1, stage="one", batch_size=4, image_share=image_share, **steps)
        )
    )


def _check_single_frames(dataset: ClipDataset) -> None:
    """Steps of single frames are those that are drawn, in every process."""
    size = dataset.image_size
    [single] = _batches(dataset, start=1, steps=2, image_share=1.0)
    _check_images(as_floats(single.inputs), (4, 3, size, size), "a batch of single frames")
    mixed = _batches(dataset, start=0, steps=8, image_share=0.5)
    steps = StageSteps(
        seed=1, stage="one", batch_size=4, start=0, steps=8, image_share=0.5, num_processes=2
    )
    for step, batch in enumerate(mixed):
        clips = batch.inputs.ndim == 5
        assert clips != steps.of_frames(step), f"step {step} is of clips, or of frames, by mistake"
    share = _batches(dataset, start=0, steps=8, image_share=0.5, rank=1, num_processes=2)
    for whole, half in zip(mixed, share, strict=True):
        assert torch.equal(half.inputs, whole.inputs[2:]), "two processes see other clips than one"


def _check_held_out(dataset: Dataset) -> None:
    held_out = dataset.held_out()
    count = held_out.images.shape[0]
    assert count > 0, "nothing is held out"
    _check_images(held_out.images, (count, *_shape(dataset)), "held_out()")
    assert len(held_out.groups) == count, "held_out() needs a group per image"
    assert set(held_out.groups) == set(held_out.columns), "columns and groups name other things"
    for group, columns in held_out.columns.items():
        tiles = held_out.groups.count(group)
        assert tiles % columns == 0, f"{group}: {tiles} tiles do not fill rows of {columns}"
    assert torch.equal(held_out.images, dataset.held_out().images), "held_out() is not repeatable"


def _check_images(images: Tensor, shape: tuple[int, ...], what: str) -> None:
    assert tuple(images.shape) == shape, f"{what} is {tuple(images.shape)}, not {shape}"
    assert images.dtype == torch.float32, f"{what} is {images.dtype}, not float32"
    assert images.device.type == "cpu", f"{what} is not on the CPU"
    assert bool(images.isfinite().all()), f"{what} is not finite"
    low, high = images.min().item(), images.max().item()
    assert 0 <= low <= high <= 1, f"{what} goes from {low} to {high}, not from 0 to 1"

"""Configs of the datasets that installed packages bring along (torch-free)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from attrs import frozen

from rpiae.core.config.fields import within
from rpiae.data.configs import MOST_HELD_OUT, ImageDatasetConfig


@frozen(kw_only=True)
class SampleDatasetConfig(ImageDatasetConfig):
    """Colour photographs inside the scikit-image and scikit-learn distributions.

    They are cropped at their natural size unless ``resize`` is given. Without ``workers``, they are
    loaded in the training process, which keeps them in memory.
    """

    module: ClassVar[str] = "rpiae.data.datasets:SampleDataset"

    def files(self) -> Iterable[tuple[str, Path | None]]:
        """The photographs, as the installed packages have them."""
        from rpiae.data.datasets import sample_files

        return sample_files()


@frozen(kw_only=True)
class DigitsDatasetConfig(ImageDatasetConfig):
    """The labelled scans of handwritten digits inside the scikit-learn distribution.

    They are enlarged to the crops unless ``resize`` is given, and loaded in the training process
    unless ``workers`` is.

    Attributes:
        held_out: scans that are held out, of every digit as many, up to one; of a digit at most half.
        portion: what is gone through where the dataset is measured or encoded; training does not
            depend on it.
    """

    module: ClassVar[str] = "rpiae.data.digits:DigitsDataset"
    held_out: int = within(1, MOST_HELD_OUT, default=360)
    portion: Literal["all", "train", "held-out"] = "all"

    def files(self) -> Iterable[tuple[str, Path | None]]:
        """The file of scans, as the installed package has it."""
        from rpiae.data.digits import digits_file

        file = digits_file()
        return [(file.name, file)]

    def resized(self, side: int) -> DigitsDatasetConfig:
        """As it is: a digit fills its scan, and a crop would cut it."""
        return self

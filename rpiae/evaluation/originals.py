"""The real images' Fréchet statistics that an evaluation takes from a file, or writes to one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.evaluation.distances import ReconstructionDistance
from rpiae.evaluation.examination import Measured
from rpiae.evaluation.frechet import FeatureMoments
from rpiae.evaluation.panel import Panel
from rpiae.evaluation.records import printable_tree
from rpiae.evaluation.references import GENERATION, FrechetReference, write_reference


@runtime_checkable
class Referenced(Protocol):
    """A Fréchet distance whose real images' statistics can be in a file.

    Attributes:
        purpose: what the statistics are compared with, see ``references``.
    """

    purpose: str

    @property
    def reference(self) -> FrechetReference | None:
        """The file's statistics, where one is given."""

    @property
    def originals(self) -> FeatureMoments:
        """The real images' statistics as measured."""


class References:
    """The files of an evaluation.

    Args:
        panel: the metrics.
        crop: of the images that are measured on, in words.
        image_size: side of these, in pixels.
        out: where the statistics of the one distance are written, if anywhere.

    Raises:
        UsageError: if a given file is of another crop or size, or nothing can be written in the end.
    """

    def __init__(self, panel: Panel, crop: str, *, image_size: int, out: Path | None) -> None:
        self._panel = panel
        self._out = out
        self._image_size = image_size
        self._distances = {
            name: module for name, module in panel.modules.items() if isinstance(module, Referenced)
        }
        if out is not None:
            self._check_out(out)
        for module in self._distances.values():
            if module.reference is None:
                continue
            if module.purpose == GENERATION:
                module.reference.check_size(image_size)
            else:
                module.reference.check_crop(crop)

    def check_images(self, protocol: Mapping[str, Any]) -> None:
        """Leave out the distances of reconstructions to statistics of other images than were seen.

        Args:
            protocol: what was walked over.

        Raises:
            UsageError: if no other metric is there.
        """
        here = {name: protocol[name] for name in ("images_sha256", "crop")}
        for name, module in self._distances.items():
            if module.reference is None or not isinstance(module, ReconstructionDistance):
                continue
            try:
                module.reference.check_images(**here, count=module.count)
            except UsageError as error:
                if len(self._panel.modules) == 1:
                    raise
                self._panel.leave_out(name, str(error))

    def write(
        self, measured: Mapping[str, Measured], protocol: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Write the real images' statistics where that was asked for; what could not be written.

        Args:
            measured: what was found, by metric.
            protocol: of the walk over these images.
        """
        if self._out is None:
            return ()
        [(name, module)] = self._distances.items()
        if name not in measured:
            return (f"{self._out} was not written: {name} was not measured",)
        facts: dict[str, Any] = {
            "purpose": module.purpose,
            "extractor": measured[name].facts["extractor"],
            **{k: printable_tree(protocol[k]) for k in ("images_sha256", "crop", "location")},
        }
        if module.purpose == GENERATION:
            facts["image_size"] = self._image_size
        try:
            write_reference(self._out, module.originals, facts)
        except CheckpointError as error:
            return (str(error),)
        return ()

    def _check_out(self, path: Path) -> None:
        if len(self._distances) != 1:
            raise UsageError(
                "--write-reference writes one space's statistics; the metrics name "
                f"{len(self._distances)}"
            )
        if any(module.reference is not None for module in self._distances.values()):
            raise UsageError("--write-reference would write what --reference gives: leave out one")
        if path.suffix != ".safetensors" or not path.parent.is_dir():
            raise UsageError(
                f"--write-reference {path}: name a .safetensors file in a folder there is"
            )

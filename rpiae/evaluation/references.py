"""Fréchet statistics in files, with all that tells whether they may be compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.runtime.files import whole
from rpiae.core.training.checkpoint import digest
from rpiae.evaluation.frechet import FeatureMoments
from rpiae.evaluation.protocol import different, shortened

#: Raised where a file says more than before.
FORMAT = 2

#: What statistics are compared with: reconstructions with those of the very images that were encoded,
#: generated images with those of other real ones.
RECONSTRUCTION, GENERATION = "reconstruction", "generation"

#: What a file says besides its format, and of which kind it is.
FIELDS = {
    "purpose": str,
    "images_sha256": str,
    "count": int,
    "crop": str,
    "extractor": dict,
    "sha256": str,
}

#: By purpose, what is wrong with a file without a protocol, and with one for the other purpose.
_WITHOUT_PROTOCOL = {
    RECONSTRUCTION: (
        "holds statistics without a protocol: nothing says which images, crop and extractor they are "
        "of. Files of this kind are made of training images to compare generated ones with; a "
        "reconstruction's reference is its own originals, so leave it out"
    ),
    GENERATION: (
        "holds statistics without a protocol: nothing says which images, crop and extractor they are "
        "of. Name the images with --data, and keep their statistics with --write-reference "
        "FILE.safetensors"
    ),
}
_OTHER_PURPOSE = {
    RECONSTRUCTION: (
        "its images are not the ones that are reconstructed, so the distance to it would mix both. "
        "Leave it out: reconstructions are compared with their own originals"
    ),
    GENERATION: (
        "its images are some that a tokenizer was measured on. Generated images are compared with "
        "real ones that --data names; keep their statistics with --write-reference FILE.safetensors"
    ),
}


@frozen(kw_only=True)
class FrechetReference:
    """Statistics of images in a feature space.

    Attributes:
        moments: the statistics.
        protocol: ``purpose``, ``images_sha256``, ``count``, ``crop``, ``extractor``, the ``sha256`` of
            the statistics, and for generation the ``image_size``.
        path: the file, for messages.
    """

    moments: FeatureMoments
    protocol: Mapping[str, Any]
    path: Path

    @property
    def images(self) -> dict[str, Any]:
        """Which images it is of."""
        return {name: self.protocol[name] for name in ("crop", "count", "images_sha256")}

    def check_space(self, facts: Mapping[str, Any]) -> None:
        """Refuse statistics of another feature space.

        Raises:
            UsageError: with the facts that differ.
        """
        found = different(self.protocol["extractor"], facts)
        if found:
            raise UsageError(
                f"{self.path} holds statistics of another feature space than is measured in "
                f"({'; '.join(found)}). Measure in the space of the file, or leave it out"
            )

    def check_crop(self, crop: str) -> None:
        """Refuse statistics of images that were cropped by another rule.

        Raises:
            UsageError: with both rules.
        """
        self._check_same({"crop": crop})

    def check_images(self, *, images_sha256: str, count: int, crop: str) -> None:
        """Refuse statistics of other images than were reconstructed.

        Raises:
            UsageError: with what differs.
        """
        self._check_same({"images_sha256": images_sha256, "count": count, "crop": crop})

    def check_size(self, size: int) -> None:
        """Refuse statistics of images of another size than was generated, in pixels.

        Raises:
            UsageError: with both sizes.
        """
        if self.protocol["image_size"] != size:
            raise UsageError(
                f"{self.path} is a reference of images of {self.protocol['image_size']} pixels, and "
                f"the samples have {size}: nothing is resized. Take a reference of their size"
            )

    def _check_same(self, here: Mapping[str, Any]) -> None:
        found = [
            f"{name} is {shortened(self.protocol[name])} there and {shortened(value)} here"
            for name, value in here.items()
            if self.protocol[name] != value
        ]
        if found:
            raise UsageError(
                f"{self.path} is a reference of other images than were reconstructed "
                f"({'; '.join(found)}). Reconstructions are compared with their own originals: "
                "leave out the reference"
            )


def read_reference(path: Path, purpose: str = RECONSTRUCTION) -> FrechetReference:
    """Statistics to compare reconstructions, or generated images, with.

    Raises:
        CheckpointError: if the file is missing or damaged.
        UsageError: if it has no protocol, or is for another purpose.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no reference {path}")
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} {_WITHOUT_PROTOCOL[purpose]}")
    try:
        with safe_open(path, "pt") as file:
            protocol = json.loads((file.metadata() or {}).get("rpiae", "{}"))
            tensors = {name: file.get_tensor(name) for name in ("mean", "scatter")}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a reference: {error}") from None
    if not isinstance(protocol, dict) or protocol.get("format") != FORMAT:
        raise UsageError(f"{path} is no reference of this version: write it with --write-reference")
    lacking = [name for name, kind in FIELDS.items() if not isinstance(protocol.get(name), kind)]
    if lacking:
        raise CheckpointError(f"{path} is damaged: it does not say {', '.join(lacking)}")
    if protocol["purpose"] != purpose:
        raise UsageError(
            f"{path} is a reference for {protocol['purpose']}: {_OTHER_PURPOSE[purpose]}"
        )
    if purpose == GENERATION and not isinstance(protocol.get("image_size"), int):
        raise CheckpointError(f"{path} is damaged: it does not say image_size")
    d = len(tensors["mean"].flatten())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"mean": (d,), "scatter": (d, d)} or digest(tensors) != protocol["sha256"]:
        raise CheckpointError(f"{path} is damaged: its statistics are not those that were written")
    moments = FeatureMoments(d)
    moments.count = protocol["count"]
    moments.mean, moments.scatter = tensors["mean"], tensors["scatter"]
    return FrechetReference(moments=moments, protocol=protocol, path=path)


def write_reference(path: Path, moments: FeatureMoments, protocol: Mapping[str, Any]) -> None:
    """Write statistics and their protocol.

    Args:
        path: a ``.safetensors`` file.
        moments: the statistics.
        protocol: ``purpose``, ``images_sha256``, ``crop``, ``extractor``, and for generation
            ``image_size``.

    Raises:
        UsageError: if the path has another ending.
        CheckpointError: if it cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"a reference is written to a .safetensors file, not {path}")
    tensors = {"mean": moments.mean.contiguous(), "scatter": moments.scatter.contiguous()}
    described = {"format": FORMAT, **protocol, "count": moments.count, "sha256": digest(tensors)}
    try:
        with whole(path) as unfinished:
            save_file(tensors, unfinished, metadata={"rpiae": json.dumps(described)})
            unfinished.chmod(0o644)  # safetensors lets its owner alone read it
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None

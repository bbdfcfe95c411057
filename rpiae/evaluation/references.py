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
from rpiae.evaluation.frechet import FeatureMoments
from rpiae.evaluation.protocol import different, shortened

FORMAT = 1

#: What reconstructions may be compared with: the statistics of the very images that were encoded.
RECONSTRUCTION = "reconstruction"


@frozen(kw_only=True)
class FrechetReference:
    """Statistics of images in a feature space.

    Attributes:
        moments: the statistics.
        protocol: ``purpose``, ``images_sha256``, ``count``, ``crop`` and ``extractor``.
        path: the file, for messages.
    """

    moments: FeatureMoments
    protocol: Mapping[str, Any]
    path: Path

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

    def check_images(self, *, images_sha256: str, count: int, crop: str) -> None:
        """Refuse statistics of other images than were reconstructed.

        Raises:
            UsageError: with what differs.
        """
        here = {"images_sha256": images_sha256, "count": count, "crop": crop}
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


def read_reference(path: Path) -> FrechetReference:
    """Statistics to compare reconstructions with.

    Raises:
        CheckpointError: if the file is missing or damaged.
        UsageError: if it has no protocol, or is for comparing generated images.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no reference {path}")
    if path.suffix != ".safetensors":
        raise UsageError(
            f"{path} holds statistics without a protocol: nothing says which images, crop and "
            "extractor they are of. Files of this kind are made of training images to compare "
            "generated ones with; a reconstruction's reference is its own originals, so leave it out"
        )
    try:
        with safe_open(path, "pt") as file:
            protocol = json.loads((file.metadata() or {}).get("rpiae", "{}"))
            tensors = {name: file.get_tensor(name) for name in ("mean", "scatter")}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a reference: {error}") from None
    if protocol.get("format") != FORMAT:
        raise UsageError(f"{path} is no reference of this version: write it with --write-reference")
    if protocol["purpose"] != RECONSTRUCTION:
        raise UsageError(
            f"{path} is a reference for {protocol['purpose']}: its images are not the ones that are "
            "reconstructed, so the distance to it would mix both. Leave it out: reconstructions are "
            "compared with their own originals"
        )
    moments = FeatureMoments(len(tensors["mean"]))
    moments.count = int(protocol["count"])
    moments.mean, moments.scatter = tensors["mean"], tensors["scatter"]
    return FrechetReference(moments=moments, protocol=protocol, path=path)


def write_reference(path: Path, moments: FeatureMoments, protocol: Mapping[str, Any]) -> None:
    """Write statistics and their protocol.

    Args:
        path: a ``.safetensors`` file.
        moments: the statistics.
        protocol: ``purpose``, ``images_sha256``, ``crop`` and ``extractor``.

    Raises:
        UsageError: if the path has another ending.
        CheckpointError: if it cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"a reference is written to a .safetensors file, not {path}")
    whole = {"format": FORMAT, **protocol, "count": moments.count}
    part = path.with_suffix(".part")
    try:
        save_file(
            {"mean": moments.mean.contiguous(), "scatter": moments.scatter.contiguous()},
            part, metadata={"rpiae": json.dumps(whole)},
        )  # fmt: skip
        part.chmod(0o644)
        part.rename(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None

"""What a run of samples is to make; known before the first one is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from attrs import asdict, field, frozen

from rpiae.core.config.identity import digest
from rpiae.core.config.tree import unparse
from rpiae.core.errors import UsageError
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.core.training.checkpoint import digest as state_digest
from rpiae.latents.encoding import tokenizer_digest
from rpiae.sampling.configs import SamplingConfig
from rpiae.sampling.guidance import check_guidable
from rpiae.sampling.loaded import LoadedGenerator

#: What samples become: a sheet, a folder of PNG files, a file of images as ADM's evaluation reads it, or a
#: file of latents.
Form: TypeAlias = Literal["grid", "folder", "npz", "latents"]

_FORMS: Mapping[str, Form] = {".png": "grid", ".npz": "npz", ".safetensors": "latents"}

#: Endings that no folder of pictures has.
_STRANGE = frozenset(
    ".avi .bmp .gif .gz .jpeg .jpg .json .mp4 .npy .pt .pth .tar .tif .tiff .webp .zip".split()  # noqa: SIM905
)

#: Samples in one file of work; what is lost at most when a process is killed.
CHUNK = 64

#: Samples of which a sheet is made at most.
LARGEST_GRID = 4096


def form_of(out: Path) -> Form:
    """What samples become, from the name of the output.

    Raises:
        UsageError: if it ends like something else.
    """
    ending = out.suffix.lower()
    if ending in _FORMS:
        return _FORMS[ending]
    if ending in _STRANGE and not out.is_dir():
        raise UsageError(
            f"{out}: samples become a sheet (.png), ADM's samples (.npz), latents (.safetensors), or PNG "
            f"files in a folder, but no {ending}"
        )
    return "folder"


@frozen(kw_only=True)
class SamplingPlan:
    """What a run of samples is to make.

    Attributes:
        config: how.
        labels: class of each sample; its place is its index.
        seed: of the noise.
        form: what they become.
        columns: samples beside each other in a sheet; does not count as different.
        compare: whether a sheet shows unguided samples beside the guided ones.
        truncate: whether pixels are rounded down, as the reference does, instead of to the nearest.
        precision: what is computed in.
        fingerprints: sha256 of generator, tokenizer and guide.
        chunk_size: samples in one file of work; does not count as different.
    """

    config: SamplingConfig
    labels: tuple[int, ...]
    form: Form
    seed: int = 0
    columns: int = 8
    compare: bool = False
    truncate: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    fingerprints: Mapping[str, str] = field(factory=dict)
    chunk_size: int = CHUNK

    @property
    def num_images(self) -> int:
        """Samples."""
        return len(self.labels)

    @property
    def num_files(self) -> int:
        """Files of work."""
        return -(-self.num_images // self.chunk_size)

    def shard(self, number: int) -> range:
        """Indices of the samples in a file of work."""
        first = number * self.chunk_size
        return range(first, min(first + self.chunk_size, self.num_images))

    def file(self, number: int) -> str:
        """Name of a file of work."""
        return f"samples-{number:05}-of-{self.num_files:05}.safetensors"

    def settings(self) -> dict[str, Any]:
        """All that two calls must agree in to go on with each other's work."""
        config = asdict(self.config) | {"interval": list(self.config.interval)}
        del config["guide"]  # its fingerprint counts
        return {
            **self.fingerprints, **config, "seed": self.seed, "count": self.num_images,
            "labels": digest(list(self.labels)), "form": self.form,
            "compare": self.compare, "truncate": self.truncate, "precision": self.precision,
        }  # fmt: skip


def make_plan(
    generator: LoadedGenerator,
    config: SamplingConfig,
    labels: tuple[int, ...],
    out: Path,
    *,
    seed: int = 0,
    columns: int = 8,
    compare: bool = False,
    truncate: bool = False,
    batch_size: int | None = None,
) -> SamplingPlan:
    """What samples of a generator are to be.

    Args:
        generator: with its tokenizer.
        config, labels, seed, columns, compare, truncate: see ``SamplingPlan``.
        out: where to; its ending says what they become.
        batch_size: samples at a time.

    Raises:
        UsageError: if that does not fit together.
    """
    form = form_of(out)
    if form != "grid" and compare:
        raise UsageError(
            f"guided and unguided samples are compared in a sheet (.png), not in {out}"
        )
    if compare and config.guidance == 1:
        raise UsageError(
            "guidance 1 is none, so there is nothing to compare: name another --guidance"
        )
    if form == "grid" and len(labels) > LARGEST_GRID:
        raise UsageError(
            f"a sheet is of {LARGEST_GRID} samples at most, not of {len(labels)}: name a folder or a "
            f"file that ends in .npz instead of {out}"
        )
    if form == "latents" and truncate:
        raise UsageError("latents are not rounded: leave out --truncate")
    check_guidable(config, labels, generator.model)
    guide = generator.guide_for(config)
    fingerprints = {
        "generator": generator_digest(generator.model),
        "tokenizer": tokenizer_digest(generator.tokenizer),
        "guide": "" if guide is None else generator_digest(guide),
    }
    return SamplingPlan(
        config=config, labels=labels, form=form, seed=seed, columns=columns, compare=compare,
        truncate=truncate, precision=generator.precision, fingerprints=fingerprints,
        chunk_size=max(CHUNK, batch_size or 1),
    )  # fmt: skip


def generator_digest(model: LatentGenerator) -> str:
    """sha256 of what the samples of a generator depend on: its config, its flow and its weights."""
    assert model.config is not None
    parts = [unparse(model.config), unparse(model.flow)]
    return state_digest({"parts": parts, "state": model.state_dict()})

"""Latents as datasets of Hugging Face ``datasets``: the folder itself, or Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rpiae.core.config.identity import digest
from rpiae.core.errors import MissingExtraError, RpiaeError, UsageError
from rpiae.core.runtime.files import whole_folder
from rpiae.interop.latents.arrays import (
    FACTS_FILE,
    array_type,
    arrays,
    bytes_of_item,
    is_labelled,
    opened,
    origin,
    remarks,
    write_facts,
)
from rpiae.latents.reading import LatentDataset

#: Bytes of latents in a Parquet file, at most: what ``datasets`` itself aims at.
FILE_BYTES = 500_000_000
#: Bytes of latents that are in memory at once, a row group of a file.
GROUP_BYTES = 32_000_000
#: Rows of a part of a streamed dataset, which one worker reads.
PART_ROWS = 1024


def as_dataset(
    folder: str | os.PathLike[str],
    *,
    streaming: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """A folder of latents as a dataset of Hugging Face ``datasets``.

    Columns are ``latent``, or ``mean`` and ``logvar``, each also with ``_flipped`` where mirrored images
    are stored, as ``Array3D`` (of clips and videos ``Array4D``); ``label`` where the source has labels, a
    ``ClassLabel`` where they have names; ``name`` and ``position`` in the source. bfloat16 becomes
    float32, with the same values.

    Args:
        folder: what ``rpiae encode`` wrote.
        streaming: gives an ``IterableDataset``, which reads the folder as it goes. Otherwise a
            ``Dataset``: written once into the library's cache, and memory-mapped from there.
        cache_dir: of the library's cache; its own where not given.

    Raises:
        MissingExtraError: if ``datasets`` is not installed.
        CheckpointError: if the latents are incomplete or damaged.
        UsageError: if they are of videos that differ in size.
    """
    library = _library()
    latents = opened(folder)
    arguments = {
        "features": _features(latents),
        "gen_kwargs": {"folder": str(Path(folder).absolute()), "parts": _parts(latents)},
    }
    if streaming:
        return library.IterableDataset.from_generator(_rows, **arguments)
    fingerprint = digest({"index": latents.index, "columns": list(arguments["features"])})
    try:
        return library.Dataset.from_generator(
            _rows, **arguments, cache_dir=cache_dir, fingerprint=fingerprint[:16]
        )
    except library.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, RpiaeError):
            raise error.__cause__ from None
        raise


def write_datasets(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[str]:
    """Write latents as Parquet files that ``datasets.load_dataset(out)`` reads, and ``facts.json``.

    Columns are those of ``as_dataset``.

    Args:
        folder: what ``rpiae encode`` wrote.
        out: the new folder.

    Returns:
        Sentences on what was written.

    Raises:
        MissingExtraError: if ``datasets`` is not installed.
        CheckpointError: if the latents are incomplete or damaged.
        UsageError: if ``out`` is there already, or these are videos that differ in size.
        RunError: if it cannot be written. Nothing is left there then.
    """
    library = _library()
    latents = opened(folder)
    features = _features(latents)
    with whole_folder(Path(out)) as made:
        files = _write_files(library, latents, features, made / "data")
        write_facts(latents, made)
    return [
        f"{len(latents)} rows with columns {', '.join(features)} in {files} Parquet files under data/",
        'datasets.load_dataset reads the folder; its split is "train"',
        f"{FACTS_FILE} has latents_mean and latents_std, the names of the classes and the tokenizer's "
        "fingerprint",
        *remarks(latents, "label"),
    ]


def _library() -> Any:
    """The module ``datasets``.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(
            'datasets of Hugging Face need datasets, which is not installed: pip install "rpiae[hf]"'
        ) from None
    return datasets


def _features(latents: LatentDataset) -> Any:
    """The columns and their types.

    Raises:
        UsageError: if items differ in size, as no column's may.
    """
    import datasets

    shape = latents.latent_shape
    if not all(shape):
        raise UsageError(
            f"the videos in {latents.folder} differ in size or length, and the latents of a column may "
            "not: encode clips of them (rpiae encode --clips), or write a WebDataset"
        )
    array = datasets.Array3D if len(shape) == 3 else datasets.Array4D
    columns: dict[str, Any] = {
        name: array(shape=shape, dtype=array_type(latents)) for name in latents.tensors
    }
    if is_labelled(latents):
        columns["label"] = _label(latents.label_names)
    columns |= {
        name: datasets.Value("string" if isinstance(value, str) else "int64")
        for name, value in origin(latents, 0).items()
    }
    return datasets.Features(columns)


def _label(names: Sequence[str]) -> Any:
    """The type of labels: with names where each has its own, as ``ClassLabel`` wants them."""
    import datasets

    if names and len(set(names)) == len(names):
        return datasets.ClassLabel(names=list(names))
    return datasets.Value("int64")


def _row(latents: LatentDataset, index: int) -> dict[str, Any]:
    row: dict[str, Any] = {**arrays(latents, index)}
    if is_labelled(latents):
        row["label"] = int(latents.labels[index])
    return row | origin(latents, index)


def _parts(latents: LatentDataset) -> list[range]:
    """The rows in parts, which workers share out among them."""
    starts = range(0, len(latents), PART_ROWS)
    return [range(start, min(start + PART_ROWS, len(latents))) for start in starts]


def _rows(folder: str, parts: Sequence[range]) -> Iterator[dict[str, Any]]:
    """Rows of some parts, in whatever process reads them."""
    latents = opened(folder)
    for part in parts:
        for index in part:
            yield _row(latents, index)


def _write_files(library: Any, latents: LatentDataset, features: Any, folder: Path) -> int:
    """Write Parquet files under the names that are those of a split; how many there are."""
    import pyarrow.parquet as parquet

    folder.mkdir()
    weight = bytes_of_item(latents, 0)
    rows, group = max(1, FILE_BYTES // weight), max(1, GROUP_BYTES // weight)
    starts = range(0, len(latents), rows)
    for number, start in enumerate(starts):
        path = folder / f"train-{number:05}-of-{len(starts):05}.parquet"
        stop = min(start + rows, len(latents))
        with parquet.ParquetWriter(path, features.arrow_schema) as writer:
            for first in range(start, stop, group):
                items = range(first, min(first + group, stop))
                made = [_row(latents, index) for index in items]
                writer.write_table(library.Dataset.from_list(made, features=features).data.table)
    return len(starts)

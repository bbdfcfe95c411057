"""Which classes samples in files and folders were asked for: what is written beside their images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rpiae.core.errors import CheckpointError, DataError
from rpiae.core.runtime.files import read_json, write_text
from rpiae.core.runtime.names import printable
from rpiae.data.labels import Labels, unique_names

#: Names of the images, their labels and the names of classes in a file of ADM's layout, which knows the
#: first two; and of the names in an index.
IMAGES, LABELS, NAMES = "arr_0", "arr_1", "label_names"

#: Index of the classes in a folder of samples.
LABELS_FILE = "samples.json"

#: Of the index.
FORMAT = 1


def write_labels(folder: Path, labels: Mapping[str, int], names: Sequence[str]) -> None:
    """Write the index of a folder of samples.

    Args:
        folder: of the samples.
        labels: class of each file; −1 for none.
        names: of all classes, by number; empty where unknown.

    Raises:
        RunError: if it cannot be written.
    """
    index = {"format": FORMAT, NAMES: list(names), "labels": dict(labels)}
    write_text(folder / LABELS_FILE, json.dumps(index, indent=2) + "\n")


def indexed_labels(folder: Path, files: Sequence[str]) -> Labels | None:
    """Classes of a folder's samples by its index; None where it has none.

    Args:
        folder: of the samples.
        files: names of their files; one that the index lacks has no label.

    Raises:
        DataError: if the index is damaged.
    """
    path = folder / LABELS_FILE
    if not path.exists():
        return None
    try:
        index = read_json(path)
    except CheckpointError as error:
        raise DataError(f"{printable(str(error))}. {_REMEDY}") from None
    names, labels = (index.get(NAMES), index.get("labels")) if isinstance(index, dict) else ("", "")
    if not isinstance(names, list) or not isinstance(labels, dict) or index.get("format") != FORMAT:
        raise DataError(f"{printable(str(path))} is no index of samples. {_REMEDY}")
    highest = len(names) - 1 if names else np.iinfo(np.int32).max
    if not all(isinstance(name, str) for name in names) or not all(
        isinstance(label, int) and -1 <= label <= highest for label in labels.values()
    ):
        raise DataError(f"{printable(str(path))} holds labels that are none. {_REMEDY}")
    numbers = np.array([labels.get(file, -1) for file in files], np.int32)
    return Labels(numbers, unique_names(names), _notices(folder, numbers))


_REMEDY = "It says the class of each sample: sample anew, or remove it, so that names of files say the classes"


def _notices(folder: Path, numbers: np.ndarray) -> tuple[str, ...]:
    missing = int((numbers < 0).sum())
    if not missing or missing == len(numbers):
        return ()
    return (f"{printable(str(folder))}: {missing} of {len(numbers)} samples have no label",)

"""What tells one dataset from another, without decoding its images."""

from __future__ import annotations

import functools

from rpiae.core.config.identity import digest, identity
from rpiae.core.config.parts import DatasetConfig


@functools.cache
def data_fingerprint(data: DatasetConfig, *, times: bool = True) -> str:
    """sha256 of a dataset's fields, and of the files that it reads.

    Of files of more than ``READ_WHOLE`` bytes in all, names, sizes and times count, of fewer their
    content. Where they lie does not count, nor how many processes load them. What is not on a local
    disk counts by its name, and on the hub by its commit. The answer is remembered: ``cache_clear``
    has the files looked at again.

    Args:
        data: the dataset.
        times: see ``rpiae.core.config.identity.identity``.

    Raises:
        DataError: if a file is not there or cannot be read.
    """
    return digest(identity(data, times=times))

"""Folders of latents for the libraries that generators are trained with.

    write_webdataset("latents", "there")  # tar shards
    write_datasets("latents", "there")  # Parquet, for datasets.load_dataset("there")
    as_dataset("latents")  # a datasets.Dataset of the folder itself

``docs/interop.md`` describes what is written.
"""

from rpiae.interop.latents.huggingface import as_dataset, write_datasets
from rpiae.interop.latents.webdataset import write_webdataset

__all__ = ["as_dataset", "write_datasets", "write_webdataset"]

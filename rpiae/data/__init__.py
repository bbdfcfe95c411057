"""Datasets: the registry and its built-in table."""

from rpiae.core.registry import Entry, Registry, installed_plugins

ENTRIES = (
    Entry(
        name="folder",
        target="rpiae.data.configs:FolderDatasetConfig",
        summary="image files below a folder, such as folder:/data/imagenet/train",
        argument="path",
    ),
    Entry(
        name="parquet",
        target="rpiae.data.configs:ParquetDatasetConfig",
        summary="Parquet files in the image layout of Hugging Face datasets, as parquet:PATH",
        argument="path",
    ),
    Entry(
        name="sample",
        target="rpiae.data.configs:SampleDatasetConfig",
        summary="nine colour photographs that scikit-image and scikit-learn bring along; offline",
    ),
)

DATASETS = Registry("datasets", ENTRIES, plugins=installed_plugins)

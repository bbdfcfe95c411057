"""Datasets: the registry and its built-in table."""

from rpiae.core.registry.registry import Entry, Registry, installed_plugins

ENTRIES = (
    Entry(
        name="digits",
        target="rpiae.data.packaged_configs:DigitsDatasetConfig",
        summary="1,797 scans of handwritten digits that scikit-learn brings along, with labels; offline",
        argument="portion",
    ),
    Entry(
        name="folder",
        target="rpiae.data.configs:FolderDatasetConfig",
        summary="image files below a folder, such as folder:/data/imagenet/train",
        argument="path",
        files=("/",),
    ),
    Entry(
        name="hf",
        target="rpiae.data.configs:HuggingFaceDatasetConfig",
        summary="a dataset on the Hugging Face hub or saved by its library, as hf:OWNER/NAME or hf:FOLDER",
        extra="hf",
        requires="datasets",
        argument="path",
        files=("dataset_dict.json", "state.json"),
    ),
    Entry(
        name="mixture",
        target="rpiae.data.configs:MixtureDatasetConfig",
        summary="several datasets, drawn with weights (data.sources in a config file)",
    ),
    Entry(
        name="parquet",
        target="rpiae.data.configs:ParquetDatasetConfig",
        summary="Parquet files in the image layout of Hugging Face datasets, as parquet:PATH",
        argument="path",
        files=(".parquet",),
    ),
    Entry(
        name="sample",
        target="rpiae.data.packaged_configs:SampleDatasetConfig",
        summary="nine colour photographs that scikit-image and scikit-learn bring along; offline",
    ),
    Entry(
        name="videos",
        target="rpiae.data.configs:VideosConfig",
        summary="video files, folders of frames, and shards or Parquet files of videos, as videos:PATH",
        extra="video",
        requires="av",
        argument="path",
        files=(".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v"),
    ),
    Entry(
        name="webdataset",
        target="rpiae.data.configs:WebDatasetConfig",
        summary="tar shards in the WebDataset layout, as webdataset:/data/train-{0000..0099}.tar",
        extra="webdataset",
        requires="webdataset",
        argument="path",
        files=(".tar", ".tar.gz", ".tgz"),
    ),
)

DATASETS = Registry("datasets", ENTRIES, plugins=installed_plugins)

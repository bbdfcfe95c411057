"""From a config to a dataset that fits its contract."""

from __future__ import annotations

from rpiae.core.config.parts import DatasetConfig
from rpiae.core.errors import PluginError
from rpiae.core.model.contracts import Dataset

_OFFERS = ("num_images", "image_size", "notices", "batches", "held_out", "crops")


def built_dataset(config: DatasetConfig) -> Dataset:
    """The dataset behind a config.

    Raises:
        PluginError: if it lacks anything that ``Dataset`` names.
        RpiaeError: what the dataset itself raises.
    """
    dataset = config.build()
    if not isinstance(dataset, Dataset):
        lacks = ", ".join(name for name in _OFFERS if not hasattr(dataset, name))
        raise PluginError(
            f"{config.label!r} of the datasets cannot be used: its module {config.module!r} lacks "
            f"{lacks}. rpiae.plugin.check_dataset checks a dataset; docs/data.md says what it needs"
        )
    return dataset

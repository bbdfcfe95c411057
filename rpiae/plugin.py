"""All that a plugin, a notebook's part or an example imports of rpiae, beside ``rpiae`` itself.

    from rpiae.plugin import BridgeConfig, Entry, Features, Manifest, at_least, check_bridge, wired

What stands here keeps its name; the modules behind it may move. Names are loaded when they are first
used, so a manifest or a config that imports some of them stays free of torch.

* Registered: ``Entry``, ``Preset``, ``Manifest``.
* Configs: the bases and descriptions of every family, and the kinds of fields.
* Contracts: what a part must offer and what it is handed, and shapes to move between both.
* Building blocks: attention, transformer blocks, positions.
* The contract kit: ``check_…``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpiae.bridges.posterior import DiagonalGaussian
    from rpiae.core.attention import attention
    from rpiae.core.blocks import Block, sincos_positions, through
    from rpiae.core.config import (
        BridgeConfig,
        BridgeDescription,
        CriticConfig,
        DatasetConfig,
        DecoderConfig,
        EncoderConfig,
        EncoderDescription,
        LossConfig,
        MetricConfig,
        at_least,
        names_file,
        settings_only,
        wired,
        within,
        without_effect,
    )
    from rpiae.core.contracts import (
        AdversarialTerm,
        Batch,
        BlockFeatures,
        Bridge,
        Critic,
        Dataset,
        Decoder,
        Encoder,
        Features,
        Fit,
        Fittable,
        GaussianPosterior,
        HeldOut,
        Posterior,
        QuantisedPosterior,
        Replica,
        StepContext,
        Term,
        block_index,
        local_samples,
    )
    from rpiae.core.entries import Entry, Manifest, Preset
    from rpiae.core.errors import ConfigError, DataError, FetchError, RpiaeError, UsageError
    from rpiae.core.randomness import StepRandomness, generator
    from rpiae.core.recipe import AdversarialConfig
    from rpiae.core.shapes import Grid, at_least_fp32, map_grid, map_to_tokens, tokens_to_map
    from rpiae.evaluation.examination import (
        Accumulator,
        Examination,
        Measured,
        Metric,
        TrainedMetric,
    )
    from rpiae.latents import LatentDataset
    from rpiae.testing import (
        SyntheticImages,
        check_bridge,
        check_builds,
        check_critic,
        check_dataset,
        check_decoder,
        check_encoder,
        check_loss,
        check_manifest,
        check_metric,
        check_plugin,
    )

_WHERE = {
    "Accumulator": "rpiae.evaluation.examination",
    "AdversarialConfig": "rpiae.core.recipe",
    "AdversarialTerm": "rpiae.core.contracts",
    "Batch": "rpiae.core.contracts",
    "Block": "rpiae.core.blocks",
    "BlockFeatures": "rpiae.core.contracts",
    "Bridge": "rpiae.core.contracts",
    "BridgeConfig": "rpiae.core.config",
    "BridgeDescription": "rpiae.core.config",
    "ConfigError": "rpiae.core.errors",
    "Critic": "rpiae.core.contracts",
    "CriticConfig": "rpiae.core.config",
    "DataError": "rpiae.core.errors",
    "Dataset": "rpiae.core.contracts",
    "DatasetConfig": "rpiae.core.config",
    "Decoder": "rpiae.core.contracts",
    "DecoderConfig": "rpiae.core.config",
    "DiagonalGaussian": "rpiae.bridges.posterior",
    "Encoder": "rpiae.core.contracts",
    "EncoderConfig": "rpiae.core.config",
    "EncoderDescription": "rpiae.core.config",
    "Entry": "rpiae.core.entries",
    "Examination": "rpiae.evaluation.examination",
    "Features": "rpiae.core.contracts",
    "FetchError": "rpiae.core.errors",
    "Fit": "rpiae.core.contracts",
    "Fittable": "rpiae.core.contracts",
    "GaussianPosterior": "rpiae.core.contracts",
    "Grid": "rpiae.core.shapes",
    "HeldOut": "rpiae.core.contracts",
    "LatentDataset": "rpiae.latents",
    "LossConfig": "rpiae.core.config",
    "Manifest": "rpiae.core.entries",
    "Measured": "rpiae.evaluation.examination",
    "Metric": "rpiae.evaluation.examination",
    "MetricConfig": "rpiae.core.config",
    "Posterior": "rpiae.core.contracts",
    "Preset": "rpiae.core.entries",
    "QuantisedPosterior": "rpiae.core.contracts",
    "Replica": "rpiae.core.contracts",
    "RpiaeError": "rpiae.core.errors",
    "StepContext": "rpiae.core.contracts",
    "StepRandomness": "rpiae.core.randomness",
    "SyntheticImages": "rpiae.testing",
    "Term": "rpiae.core.contracts",
    "TrainedMetric": "rpiae.evaluation.examination",
    "UsageError": "rpiae.core.errors",
    "at_least": "rpiae.core.config",
    "at_least_fp32": "rpiae.core.shapes",
    "attention": "rpiae.core.attention",
    "block_index": "rpiae.core.contracts",
    "check_bridge": "rpiae.testing",
    "check_builds": "rpiae.testing",
    "check_critic": "rpiae.testing",
    "check_dataset": "rpiae.testing",
    "check_decoder": "rpiae.testing",
    "check_encoder": "rpiae.testing",
    "check_loss": "rpiae.testing",
    "check_manifest": "rpiae.testing",
    "check_metric": "rpiae.testing",
    "check_plugin": "rpiae.testing",
    "generator": "rpiae.core.randomness",
    "local_samples": "rpiae.core.contracts",
    "map_grid": "rpiae.core.shapes",
    "map_to_tokens": "rpiae.core.shapes",
    "names_file": "rpiae.core.config",
    "settings_only": "rpiae.core.config",
    "sincos_positions": "rpiae.core.blocks",
    "through": "rpiae.core.blocks",
    "tokens_to_map": "rpiae.core.shapes",
    "wired": "rpiae.core.config",
    "within": "rpiae.core.config",
    "without_effect": "rpiae.core.config",
}

__all__ = [
    "Accumulator",
    "AdversarialConfig",
    "AdversarialTerm",
    "Batch",
    "Block",
    "BlockFeatures",
    "Bridge",
    "BridgeConfig",
    "BridgeDescription",
    "ConfigError",
    "Critic",
    "CriticConfig",
    "DataError",
    "Dataset",
    "DatasetConfig",
    "Decoder",
    "DecoderConfig",
    "DiagonalGaussian",
    "Encoder",
    "EncoderConfig",
    "EncoderDescription",
    "Entry",
    "Examination",
    "Features",
    "FetchError",
    "Fit",
    "Fittable",
    "GaussianPosterior",
    "Grid",
    "HeldOut",
    "LatentDataset",
    "LossConfig",
    "Manifest",
    "Measured",
    "Metric",
    "MetricConfig",
    "Posterior",
    "Preset",
    "QuantisedPosterior",
    "Replica",
    "RpiaeError",
    "StepContext",
    "StepRandomness",
    "SyntheticImages",
    "Term",
    "TrainedMetric",
    "UsageError",
    "at_least",
    "at_least_fp32",
    "attention",
    "block_index",
    "check_bridge",
    "check_builds",
    "check_critic",
    "check_dataset",
    "check_decoder",
    "check_encoder",
    "check_loss",
    "check_manifest",
    "check_metric",
    "check_plugin",
    "generator",
    "local_samples",
    "map_grid",
    "map_to_tokens",
    "names_file",
    "settings_only",
    "sincos_positions",
    "through",
    "tokens_to_map",
    "wired",
    "within",
    "without_effect",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rpiae.plugin' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""All that a plugin, a notebook's part or an example imports of rpiae, beside ``rpiae`` itself.

    from rpiae.plugin import BridgeConfig, Entry, Features, Manifest, at_least, check_bridge, wired

What stands here keeps its name; the modules behind it may move. Names are loaded when they are first
used, so a manifest or a config that imports some of them stays free of torch.

* Registered: ``Entry``, ``Preset``, ``Manifest``.
* Configs: the bases and descriptions of every family, and the kinds of fields.
* Contracts: what a part must offer and what it is handed, and shapes to move between both.
* Building blocks: attention, transformer blocks, positions; what causal parts remember of a clip.
* Weights: ``download``, ``local_weights``, ``read_weights`` and ``load_whole``.
* The contract kit: ``check_…``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpiae.bridges.posterior import DiagonalGaussian
    from rpiae.core.config.fields import (
        at_least,
        loaded_once,
        names_file,
        names_revision,
        rounding_only,
        settings_only,
        wired,
        within,
        without_effect,
    )
    from rpiae.core.config.generation import GeneratorConfig
    from rpiae.core.config.parts import (
        BridgeConfig,
        BridgeDescription,
        CriticConfig,
        DatasetConfig,
        DecoderConfig,
        EncoderConfig,
        EncoderDescription,
        LossConfig,
        MetricConfig,
    )
    from rpiae.core.config.recipe import AdversarialConfig
    from rpiae.core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        FetchError,
        RpiaeError,
        UsageError,
    )
    from rpiae.core.model.attention import Causal, Window, attention
    from rpiae.core.model.blocks import Block, sincos_positions, through
    from rpiae.core.model.contracts import (
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
        StageSteps,
        StepContext,
        Term,
        block_index,
    )
    from rpiae.core.model.folding import per_frame
    from rpiae.core.model.generation import FlowContext, Generator
    from rpiae.core.model.geometry import (
        Grid,
        Patch,
        at_least_fp32,
        map_grid,
        map_to_tokens,
        tokens_to_map,
    )
    from rpiae.core.model.temporal import (
        LayeredDecoder,
        Past,
        TemporalBlock,
        TemporalBridge,
        TemporalDecoder,
    )
    from rpiae.core.registry.entries import Entry, Manifest, Preset
    from rpiae.core.runtime.draws import StepRandomness, generator
    from rpiae.core.runtime.weights import load_whole, read_weights
    from rpiae.encoders.hub import download, local_weights
    from rpiae.evaluation.accumulators import Accumulator
    from rpiae.evaluation.examination import (
        ComparedMetric,
        Examination,
        Measured,
        Metric,
        TrainedMetric,
    )
    from rpiae.evaluation.seen import Seen
    from rpiae.interop.latents import as_dataset
    from rpiae.latents import LatentDataset
    from rpiae.testing import (
        SyntheticClips,
        SyntheticImages,
        check_bridge,
        check_builds,
        check_critic,
        check_dataset,
        check_decoder,
        check_encoder,
        check_generator,
        check_generator_builds,
        check_loss,
        check_manifest,
        check_metric,
        check_plugin,
    )

_WHERE = {
    "Accumulator": "rpiae.evaluation.accumulators",
    "AdversarialConfig": "rpiae.core.config.recipe",
    "AdversarialTerm": "rpiae.core.model.contracts",
    "Batch": "rpiae.core.model.contracts",
    "Block": "rpiae.core.model.blocks",
    "BlockFeatures": "rpiae.core.model.contracts",
    "Bridge": "rpiae.core.model.contracts",
    "BridgeConfig": "rpiae.core.config.parts",
    "BridgeDescription": "rpiae.core.config.parts",
    "Causal": "rpiae.core.model.attention",
    "CheckpointError": "rpiae.core.errors",
    "ComparedMetric": "rpiae.evaluation.examination",
    "ConfigError": "rpiae.core.errors",
    "Critic": "rpiae.core.model.contracts",
    "CriticConfig": "rpiae.core.config.parts",
    "DataError": "rpiae.core.errors",
    "Dataset": "rpiae.core.model.contracts",
    "DatasetConfig": "rpiae.core.config.parts",
    "Decoder": "rpiae.core.model.contracts",
    "DecoderConfig": "rpiae.core.config.parts",
    "DiagonalGaussian": "rpiae.bridges.posterior",
    "Encoder": "rpiae.core.model.contracts",
    "EncoderConfig": "rpiae.core.config.parts",
    "EncoderDescription": "rpiae.core.config.parts",
    "Entry": "rpiae.core.registry.entries",
    "Examination": "rpiae.evaluation.examination",
    "Features": "rpiae.core.model.contracts",
    "FetchError": "rpiae.core.errors",
    "Fit": "rpiae.core.model.contracts",
    "Fittable": "rpiae.core.model.contracts",
    "FlowContext": "rpiae.core.model.generation",
    "GaussianPosterior": "rpiae.core.model.contracts",
    "Generator": "rpiae.core.model.generation",
    "GeneratorConfig": "rpiae.core.config.generation",
    "Grid": "rpiae.core.model.geometry",
    "HeldOut": "rpiae.core.model.contracts",
    "LatentDataset": "rpiae.latents",
    "LayeredDecoder": "rpiae.core.model.temporal",
    "LossConfig": "rpiae.core.config.parts",
    "Manifest": "rpiae.core.registry.entries",
    "Measured": "rpiae.evaluation.examination",
    "Metric": "rpiae.evaluation.examination",
    "MetricConfig": "rpiae.core.config.parts",
    "Past": "rpiae.core.model.temporal",
    "Patch": "rpiae.core.model.geometry",
    "Posterior": "rpiae.core.model.contracts",
    "Preset": "rpiae.core.registry.entries",
    "QuantisedPosterior": "rpiae.core.model.contracts",
    "Replica": "rpiae.core.model.contracts",
    "RpiaeError": "rpiae.core.errors",
    "Seen": "rpiae.evaluation.seen",
    "StageSteps": "rpiae.core.model.contracts",
    "StepContext": "rpiae.core.model.contracts",
    "StepRandomness": "rpiae.core.runtime.draws",
    "SyntheticClips": "rpiae.testing",
    "SyntheticImages": "rpiae.testing",
    "TemporalBlock": "rpiae.core.model.temporal",
    "TemporalBridge": "rpiae.core.model.temporal",
    "TemporalDecoder": "rpiae.core.model.temporal",
    "Term": "rpiae.core.model.contracts",
    "TrainedMetric": "rpiae.evaluation.examination",
    "UsageError": "rpiae.core.errors",
    "Window": "rpiae.core.model.attention",
    "as_dataset": "rpiae.interop.latents",
    "at_least": "rpiae.core.config.fields",
    "at_least_fp32": "rpiae.core.model.geometry",
    "attention": "rpiae.core.model.attention",
    "block_index": "rpiae.core.model.contracts",
    "check_bridge": "rpiae.testing",
    "check_builds": "rpiae.testing",
    "check_critic": "rpiae.testing",
    "check_dataset": "rpiae.testing",
    "check_decoder": "rpiae.testing",
    "check_encoder": "rpiae.testing",
    "check_generator": "rpiae.testing",
    "check_generator_builds": "rpiae.testing",
    "check_loss": "rpiae.testing",
    "check_manifest": "rpiae.testing",
    "check_metric": "rpiae.testing",
    "check_plugin": "rpiae.testing",
    "download": "rpiae.encoders.hub",
    "generator": "rpiae.core.runtime.draws",
    "load_whole": "rpiae.core.runtime.weights",
    "loaded_once": "rpiae.core.config.fields",
    "local_weights": "rpiae.encoders.hub",
    "map_grid": "rpiae.core.model.geometry",
    "map_to_tokens": "rpiae.core.model.geometry",
    "names_file": "rpiae.core.config.fields",
    "names_revision": "rpiae.core.config.fields",
    "per_frame": "rpiae.core.model.folding",
    "read_weights": "rpiae.core.runtime.weights",
    "rounding_only": "rpiae.core.config.fields",
    "settings_only": "rpiae.core.config.fields",
    "sincos_positions": "rpiae.core.model.blocks",
    "through": "rpiae.core.model.blocks",
    "tokens_to_map": "rpiae.core.model.geometry",
    "wired": "rpiae.core.config.fields",
    "within": "rpiae.core.config.fields",
    "without_effect": "rpiae.core.config.fields",
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
    "Causal",
    "CheckpointError",
    "ComparedMetric",
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
    "FlowContext",
    "GaussianPosterior",
    "Generator",
    "GeneratorConfig",
    "Grid",
    "HeldOut",
    "LatentDataset",
    "LayeredDecoder",
    "LossConfig",
    "Manifest",
    "Measured",
    "Metric",
    "MetricConfig",
    "Past",
    "Patch",
    "Posterior",
    "Preset",
    "QuantisedPosterior",
    "Replica",
    "RpiaeError",
    "Seen",
    "StageSteps",
    "StepContext",
    "StepRandomness",
    "SyntheticClips",
    "SyntheticImages",
    "TemporalBlock",
    "TemporalBridge",
    "TemporalDecoder",
    "Term",
    "TrainedMetric",
    "UsageError",
    "Window",
    "as_dataset",
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
    "check_generator",
    "check_generator_builds",
    "check_loss",
    "check_manifest",
    "check_metric",
    "check_plugin",
    "download",
    "generator",
    "load_whole",
    "loaded_once",
    "local_weights",
    "map_grid",
    "map_to_tokens",
    "names_file",
    "names_revision",
    "per_frame",
    "read_weights",
    "rounding_only",
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

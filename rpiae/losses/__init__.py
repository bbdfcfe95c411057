"""Losses and critics: the registries and their built-in tables."""

from rpiae.core.registry import Entry, Registry, installed_plugins

ENTRIES = (
    Entry(
        name="feature",
        target="rpiae.losses.configs:FeatureLossConfig",
        summary="mean squared error between the bridge decoder's output and the clean features",
        source="L_feat, arXiv 2603.19206",
    ),
    Entry(
        name="kl",
        target="rpiae.losses.configs:KlLossConfig",
        summary="mean of mean² + var − 1 − logvar, without the factor ½",
        source="L_KL, arXiv 2603.19206",
    ),
    Entry(
        name="l1",
        target="rpiae.losses.configs:L1LossConfig",
        summary="mean absolute pixel error in [0, 1]",
        source="L_rec, arXiv 2603.19206",
    ),
    Entry(
        name="mse",
        target="rpiae.losses.configs:MseLossConfig",
        summary="mean squared pixel error in [0, 1]",
    ),
    Entry(
        name="pivot",
        target="rpiae.losses.configs:PivotLossConfig",
        summary="mean squared error between the encoder's and the frozen replica's tokens",
        source="L_piv, arXiv 2603.19206",
    ),
    Entry(
        name="pivot-perceptual",
        target="rpiae.losses.configs:PivotPerceptualLossConfig",
        summary="distance in the frozen replica's intermediate features: perceptual, no download",
        source="ours, after arXiv 1603.08155",
    ),
)

LOSSES = Registry("losses", ENTRIES, plugins=installed_plugins)
CRITICS = Registry("critics", plugins=installed_plugins)

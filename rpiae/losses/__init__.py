"""Losses and critics: the registries and their built-in tables."""

from rpiae.core.registry.registry import Entry, Registry, installed_plugins, read_presets

ENTRIES = (
    Entry(
        name="adversarial",
        target="rpiae.losses.configs:AdversarialLossConfig",
        summary="game against a critic, hinge or non-saturating, differentiably augmented",
        aliases=("gan",),
        source="L_gan and L_disc, arXiv 2603.19206; DiffAug arXiv 2006.10738",
    ),
    Entry(
        name="feature",
        target="rpiae.losses.configs:FeatureLossConfig",
        summary="mean squared error between the bridge decoder's output and the clean features",
        source="L_feat, arXiv 2603.19206",
    ),
    Entry(
        name="flicker",
        target="rpiae.losses.configs:FlickerLossConfig",
        summary="change from frame to frame where nothing moves in the true clip; 0 for images",
        tags=("video",),
        source="ours",
    ),
    Entry(
        name="flow",
        target="rpiae.losses.configs:FlowLossConfig",
        summary="mean squared error of a generator's velocity from data to noise",
        tags=("generation",),
        source="rectified flow, arXiv 2209.03003",
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
        name="lpips",
        target="rpiae.losses.configs:LpipsLossConfig",
        summary="LPIPS with VGG-16 features, downloaded on first use or from a file",
        source="L_lpips, arXiv 2603.19206; arXiv 1801.03924",
        licence="VGG-16 of torchvision: BSD-3-Clause, trained on ImageNet; heads: BSD-2-Clause",
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
        name="pivot-cosine",
        target="rpiae.losses.configs:PivotCosineLossConfig",
        summary="cosine distance of the encoder's tokens from the replica's, beyond a margin",
        source="VF loss of VA-VAE, arXiv 2501.01423",
    ),
    Entry(
        name="pivot-noisy",
        target="rpiae.losses.configs:PivotNoisyLossConfig",
        summary="distillation of the replica through noised latents",
        source="after RecTok, arXiv 2512.13421",
    ),
    Entry(
        name="pivot-perceptual",
        target="rpiae.losses.configs:PivotPerceptualLossConfig",
        summary="distance in the frozen replica's intermediate features: perceptual, no download",
        source="ours, after arXiv 1603.08155",
    ),
    Entry(
        name="pivot-relational",
        target="rpiae.losses.configs:PivotRelationalLossConfig",
        summary="difference of token-similarity matrices, features or latent, beyond a margin",
        source="VF loss of VA-VAE, arXiv 2501.01423",
    ),
    Entry(
        name="pivot-trajectory",
        target="rpiae.losses.configs:PivotTrajectoryLossConfig",
        summary="difference of the features' motion over time from the replica's; 0 for images",
        tags=("video",),
        source="ours",
    ),
    Entry(
        name="temporal-difference",
        target="rpiae.losses.configs:TemporalDifferenceLossConfig",
        summary="mean absolute error of the differences of neighbouring frames; 0 for images",
        tags=("video",),
    ),
)

CRITIC_ENTRIES = (
    Entry(
        name="dino",
        target="rpiae.losses.configs:DinoCriticConfig",
        summary="trained heads on several blocks of a frozen vision transformer",
        source="D, arXiv 2603.19206; StyleGAN-T, arXiv 2301.09515",
    ),
    Entry(
        name="patch",
        target="rpiae.losses.configs:PatchCriticConfig",
        summary="small convolutional network, one logit per patch; needs no weights",
        source="PatchGAN, arXiv 1611.07004",
    ),
)

LOSSES = Registry("losses", ENTRIES, plugins=installed_plugins)
CRITICS = Registry(
    "critics", CRITIC_ENTRIES, read_presets("rpiae.losses", "critics.toml"),
    plugins=installed_plugins,
)  # fmt: skip

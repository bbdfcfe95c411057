"""Bridges: the registry and its built-in table."""

from rpiae.core.registry.registry import Entry, Registry, installed_plugins

ENTRIES = (
    Entry(
        name="conv",
        target="rpiae.bridges.configs:ConvBridgeConfig",
        summary="residual convolutions on the feature map, optionally to half its sides",
        pattern="conv{latent_channels}",
        source="arXiv 2112.10752",
    ),
    Entry(
        name="conv-kl",
        target="rpiae.bridges.configs:ConvKlBridgeConfig",
        summary="as conv, to a Gaussian posterior",
        pattern="conv-kl{latent_channels}",
        source="arXiv 2112.10752",
    ),
    Entry(
        name="identity",
        target="rpiae.bridges.configs:IdentityBridgeConfig",
        summary="no compression: the latent is the feature map (RAE)",
        aliases=("none",),
        tags=("no-training",),
        source="arXiv 2510.11690",
    ),
    Entry(
        name="linear",
        target="rpiae.bridges.configs:LinearBridgeConfig",
        summary="an affine map each way, begun as principal components of the features",
        aliases=("pca",),
        pattern="linear{latent_channels}",
        tags=("no-training",),
        source="Pearson 1901",
    ),
    Entry(
        name="temporal",
        target="rpiae.bridges.configs:TemporalBridgeConfig",
        summary="causal compression of time around any bridge of images: temporal:conv-kl16",
        argument="image",
        tags=("video",),
    ),
    Entry(
        name="temporal-variational",
        target="rpiae.bridges.configs:TemporalVariationalBridgeConfig",
        summary="causal compression of time around the variational bridge",
        aliases=("tvb",),
        pattern="tvb{latent_channels}x{temporal_downsampling}",
        tags=("video",),
        source="after arXiv 2603.19206",
    ),
    Entry(
        name="variational",
        target="rpiae.bridges.configs:VariationalBridgeConfig",
        summary="attention block to a Gaussian posterior, six transformer layers back",
        aliases=("vb",),
        pattern="vb{latent_channels}",
        source="arXiv 2603.19206",
    ),
)

BRIDGES = Registry("bridges", ENTRIES, plugins=installed_plugins)

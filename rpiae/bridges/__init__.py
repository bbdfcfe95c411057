"""Bridges: the registry and its built-in table."""

from rpiae.core.registry import Entry, Registry, installed_plugins

ENTRIES = (
    Entry(
        name="identity",
        target="rpiae.bridges.configs:IdentityBridgeConfig",
        summary="no compression: the latent is the feature map (RAE)",
        aliases=("none",),
        source="arXiv 2510.11690",
    ),
    Entry(
        name="linear",
        target="rpiae.bridges.configs:LinearBridgeConfig",
        summary="an affine map each way, begun as principal components of the features",
        aliases=("pca",),
        pattern="linear{latent_channels}",
        source="Pearson 1901",
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

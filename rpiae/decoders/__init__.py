"""Decoders: the registry and its built-in table."""

from rpiae.core.registry.registry import Entry, Registry, installed_plugins, read_presets

ENTRIES = (
    Entry(
        name="conv",
        target="rpiae.decoders.configs:ConvDecoderConfig",
        summary="residual convolutions and nearest-neighbour upsampling, for any grid",
        source="arXiv 2112.10752",
    ),
    Entry(
        name="video",
        target="rpiae.decoders.configs:VideoDecoderConfig",
        summary="any decoder of images with causal attention along time in between: video:conv-s",
        argument="image",
        tags=("video",),
        source="after arXiv 2304.08818",
    ),
    Entry(
        name="vit",
        target="rpiae.decoders.configs:VitDecoderConfig",
        summary="MAE-style ViT decoder with fixed sin-cos positions for any grid",
        source="arXiv 2111.06377, arXiv 2603.19206",
    ),
)

DECODERS = Registry("decoders", ENTRIES, read_presets("rpiae.decoders"), plugins=installed_plugins)

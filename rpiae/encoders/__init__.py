"""Pivot encoders: the registry and its built-in table."""

from rpiae.core.registry.registry import Entry, Registry, installed_plugins, read_presets

ENTRIES = (
    Entry(
        name="open-clip",
        target="rpiae.encoders.configs:OpenClipEncoderConfig",
        summary="image tower of any open_clip ViT, as open_clip:<model>/<tag>; no text tower is built",
        extra="open-clip",
        requires="open_clip",
        package="open_clip_torch",
        argument="model",
        tags=("image",),
        source="https://github.com/mlfoundations/open_clip",
    ),
    Entry(
        name="timm",
        target="rpiae.encoders.configs:TimmEncoderConfig",
        summary="any timm vision transformer that yields patch tokens, as timm:<model>",
        argument="model",
        tags=("image",),
        source="https://github.com/huggingface/pytorch-image-models",
    ),
    Entry(
        name="vit",
        target="rpiae.encoders.configs:VitEncoderConfig",
        summary="plain ViT with an optional convolutional stem, for small and from-scratch encoders",
        tags=("image",),
        source="arXiv 2010.11929; stem arXiv 2106.14881",
    ),
)

ENCODERS = Registry("encoders", ENTRIES, read_presets("rpiae.encoders"), plugins=installed_plugins)

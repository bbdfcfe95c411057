"""The bridge 'template' for rpiae. Nothing here imports torch, so that listings are quick."""

from rpiae.plugin import Entry, Manifest, Preset

MANIFEST = Manifest(
    api=1,
    entries={
        "bridges": (
            Entry(
                name="template",
                target="rpiae_template.configs:TemplateBridgeConfig",
                summary="two linear layers per token to a Gaussian posterior, and two back",
            ),
        ),
    },
    presets={
        "bridges": (
            Preset(
                name="template-s",
                part="template",
                values={"latent_channels": 8, "hidden": 64},
                summary="8 channels, 64 hidden ones",
            ),
        ),
    },
)

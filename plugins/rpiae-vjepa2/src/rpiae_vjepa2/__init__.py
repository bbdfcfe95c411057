"""V-JEPA 2 as a pivot of rpiae; torch-free."""

from rpiae.plugin import Entry, Manifest, Preset

PAPER = "arXiv 2506.09985"

#: Size → hub repository and its licence; channels, blocks, heads, hidden channels of the MLP per channel.
MODELS = {
    "l": ("facebook/vjepa2-vitl-fpc64-256", "MIT", 1024, 24, 16, 4.0),
    "h": ("facebook/vjepa2-vith-fpc64-256", "Apache-2.0", 1280, 32, 16, 4.0),
    "g": ("facebook/vjepa2-vitg-fpc64-256", "Apache-2.0", 1408, 40, 22, 48 / 11),
    "g-384": ("facebook/vjepa2-vitg-fpc64-384", "Apache-2.0", 1408, 40, 22, 48 / 11),
}


def _preset(size: str) -> Preset:
    hub_id, licence, width, depth, num_heads, mlp_ratio = MODELS[size]
    letter, _, side = size.partition("-")
    return Preset(
        name=f"vjepa2-{size}",
        part="vjepa2",
        values={
            "hub_id": hub_id, "revision": "main", "width": width, "depth": depth,
            "num_heads": num_heads, "mlp_ratio": mlp_ratio, "image_size": int(side or 256),
        },
        companions={"bridge": "tvb64x2", "decoder": "video-vit-xl"},
        summary=(
            f"V-JEPA 2 ViT-{letter if letter == 'g' else letter.upper()}/16, 2 frames per token, "
            f"{width} channels, {depth} blocks"
        ),
        licence=licence,
        paper=PAPER,
    )  # fmt: skip


MANIFEST = Manifest(
    api=1,
    entries={
        "encoders": (
            Entry(
                name="vjepa2",
                target="rpiae_vjepa2.configs:VJepa2EncoderConfig",
                summary="V-JEPA 2 through transformers: an encoder of videos, 2 frames per token",
                source=PAPER,
                tags=("video",),
            ),
        )
    },
    presets={"encoders": tuple(_preset(size) for size in MODELS)},
)

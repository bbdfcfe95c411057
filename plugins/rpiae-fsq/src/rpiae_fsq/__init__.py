"""Finite scalar quantisation as a bridge of rpiae; torch-free."""

from rpiae.plugin import Entry, Manifest, Preset

PAPER = "arXiv 2309.15505"

#: Levels per channel that the paper recommends, by the size of the codebook they stand for.
LEVELS = {
    "1k": [8, 5, 5, 5],
    "4k": [7, 5, 5, 5, 5],
    "16k": [8, 8, 8, 6, 5],
    "64k": [8, 8, 8, 5, 5, 5],
}

MANIFEST = Manifest(
    api=1,
    entries={
        "bridges": (
            Entry(
                name="fsq",
                target="rpiae_fsq.configs:FsqBridgeConfig",
                summary="finite scalar quantisation: every latent position is one of a set of codes",
                source=PAPER,
                tags=("quantised",),
            ),
        )
    },
    presets={
        "bridges": tuple(
            Preset(
                name=f"fsq-{size}",
                part="fsq",
                values={"levels": levels},
                summary=f"levels {'×'.join(map(str, levels))}",
                paper=PAPER,
            )
            for size, levels in LEVELS.items()
        )
    },
)

"""Latents of whole datasets: what a diffusion model is trained on.

    rpiae encode runs/a folder:photos --out latents
    for latent, label in DataLoader(LatentDataset("latents"), batch_size=256, shuffle=True): ...

``docs/latents.md`` describes the files.
"""

from rpiae.latents.reading import LatentDataset

__all__ = ["LatentDataset"]

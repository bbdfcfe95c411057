"""Latents of whole videos, of any length and size: a file per video, in bounded memory."""

"""Diffusers: its AutoencoderRAE read and written, and any tokenizer as one of its autoencoders."""

"""Training a generator on latents."""

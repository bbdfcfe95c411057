"""The tokenizer: contracts of its parts, geometry, blocks, and the way from configs and folders to it."""

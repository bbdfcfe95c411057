"""Training a tokenizer."""

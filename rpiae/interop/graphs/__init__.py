"""Tokenizers as graphs: torch.export and ONNX."""

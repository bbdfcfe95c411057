"""The command line: one module per verb, with its options; the only place that knows rich."""

from rpiae.cli.main import main

__all__ = ["main"]

"""The command line: one thin function per verb; the only place that knows rich."""

from rpiae.cli.main import main

__all__ = ["main"]

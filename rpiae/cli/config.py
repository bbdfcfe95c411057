"""``rpiae config``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rpiae.cli.screen import stdout
from rpiae.core.errors import RunError, UsageError

TEMPLATE = """\
# A run of rpiae: `rpiae build --config FILE`. Parts are names (rpiae list), or tables with a name
# and fields (rpiae show NAME).
encoder = "tiny"
bridge = "vb16"
decoder = "vit-t"
recipe = "quick"
data = "sample"
seed = 0
precision = "auto"

# In place of the line `encoder = ...` above, at the end of the file:
# [encoder]
# name = "dinov2-b"
# pretrained = true

# In place of the line `recipe = ...`:
# [recipe]
# name = "quick"
# batch_size = 16
# max_steps = 100
"""


def options(parser: argparse.ArgumentParser) -> None:
    """What to do, with which file."""
    parser.add_argument("action", choices=["new", "check"])
    parser.add_argument("file", help="a TOML file; - is standard output for new")


def run(arguments: argparse.Namespace) -> int:
    """Write a commented config, or check one."""
    if arguments.action == "new":
        return _new(arguments.file)
    from rpiae import runs
    from rpiae.core.config.tree import read_toml

    resolved = runs.resolve(read_toml(Path(arguments.file)), source=arguments.file)
    runs.plan(resolved)
    stdout.print(f"{arguments.file} is fine")
    if resolved.missing_losses:
        stdout.print(f"not in this version: {', '.join(resolved.missing_losses)}")
    return 0


def _new(file: str) -> int:
    if file == "-":
        print(TEMPLATE, end="")
        return 0
    path = Path(file)
    if path.exists():
        raise UsageError(f"{path} exists already: name another file, or remove it")
    try:
        path.write_text(TEMPLATE, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    stdout.print(f"wrote {path}")
    return 0

"""``rpiae push``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rpiae.cli.options import nonempty
from rpiae.cli.screen import stderr, stdout
from rpiae.core.errors import UsageError


def options(parser: argparse.ArgumentParser) -> None:
    """A model, and where on the hub it goes."""
    parser.add_argument(
        "run", type=nonempty, help="the folder of a tokenizer, a generator or a run of either"
    )
    parser.add_argument("repository", metavar="USER/NAME", type=nonempty, help="on the hub")
    parser.add_argument("--private", action="store_true", default=None, help="nobody else sees it")
    parser.add_argument(
        "--revision", default="", metavar="BRANCH", help="push to a branch (default: main)"
    )
    parser.add_argument("--message", default="", metavar="TEXT", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="write the folder and push nothing")
    parser.add_argument(
        "--out", metavar="FOLDER", type=nonempty,
        help="with --dry-run: the folder (default: NAME, here)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Write the repository's files, and push them."""
    from rpiae.interop.hub.pushing import write_repository
    from rpiae.interop.hub.repositories import named_repository, push_to_hub

    place = named_repository(arguments.repository, arguments.revision)
    if arguments.out and not arguments.dry_run:
        raise UsageError("--out is where --dry-run writes: add it, or leave --out out")
    if arguments.dry_run:
        folder = Path(arguments.out or place.repository.rpartition("/")[2])
        files = write_repository(arguments.run, folder, repository=place.repository)
        if arguments.json:
            print(json.dumps({"folder": str(folder), "files": files}, indent=2))
            return 0
        stdout.print(f"wrote {folder}: {', '.join(files)}; nothing was pushed", soft_wrap=True)
        return 0
    pushed = push_to_hub(
        arguments.run, place.repository, private=arguments.private, revision=arguments.revision,
        message=arguments.message,
    )  # fmt: skip
    if arguments.json:
        report = {
            "repository": place.repository, "url": pushed.url, "commit": pushed.commit,
            "files": pushed.files, "replaced": pushed.replaced, "others": pushed.others,
        }  # fmt: skip
        print(json.dumps(report, indent=2))
        return 0
    stdout.print(f"{pushed.url}: {', '.join(pushed.files)}", soft_wrap=True)
    for what, names in (("replaced", pushed.replaced), ("left as they are", pushed.others)):
        if names:
            stderr.print(f"note: {what}: {', '.join(names)}", soft_wrap=True)
    return 0

"""Arguments, exit codes and error messages."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

import rpiae
from rpiae.cli.launch import speaks
from rpiae.core.errors import RpiaeError, RunError

EPILOG = """exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (state saved)

examples:
  rpiae build
  rpiae build --encoder dinov2-b --bridge vb64 --data folder:photos
  rpiae build --encoder dinov2-b --bridge vb64 --dry-run
  rpiae reconstruct runs/a photo.jpg --out side_by_side.png"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    logging.getLogger("rpiae").setLevel(logging.DEBUG if arguments.debug else logging.WARNING)
    try:
        command = importlib.import_module(f"rpiae.cli.{arguments.module}")
        return int(command.execute(arguments) or 0)
    except RpiaeError as error:
        if arguments.debug:
            raise
        if speaks() or isinstance(error, RunError):
            print(f"rpiae: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        print("rpiae: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if arguments.debug:
            raise
        text = " ".join(str(error).split())[:500]
        print(
            f"rpiae: unexpected {type(error).__name__}: {text} (--debug shows where)",
            file=sys.stderr,
        )
        return 1


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="rpiae",
        description="Build representation-pivoted autoencoders from swappable parts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"rpiae {rpiae.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="tracebacks and debug logs")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, module: str, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(module=module)
        return made

    def text(given: str) -> str:
        if not given:
            raise argparse.ArgumentTypeError("it is empty")
        return given

    def run_options(verb: argparse.ArgumentParser) -> None:
        for part, example in (
            ("encoder", "tiny, dinov2-b, timm:MODEL"),
            ("bridge", "vb64, identity"),
            ("decoder", "vit-t … vit-xl"),
            ("recipe", "quick, rpiae, rae"),
            ("data", "sample, folder:PATH, parquet:PATH"),
        ):
            verb.add_argument(f"--{part}", metavar="NAME", type=text, help=f"for example {example}")
        verb.add_argument(
            "--config", metavar="FILE", type=text, help="a TOML file; options override it"
        )
        verb.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides",
            help="set one field, such as recipe.stages[0].noise=0.4; repeatable",
        )  # fmt: skip
        verb.add_argument(
            "--without", action="append", default=[], metavar="LOSSES",
            help="leave losses out of every stage, comma-separated",
        )  # fmt: skip
        verb.add_argument("--seed", type=int)
        verb.add_argument("--device", metavar="NAME", type=text, help="auto, cpu, cuda or cuda:N")
        verb.add_argument("--precision", choices=["auto", "fp32", "bf16"])

    build = verb("build", "build", "plan, train and evaluate a tokenizer")
    run_options(build)
    build.add_argument(
        "--out", metavar="FOLDER", type=text, help="the run's folder (default: runs/…)"
    )
    build.add_argument("--init", metavar="FOLDER", type=text, help="start from a run's tokenizer")
    build.add_argument("--resume", metavar="FOLDER", type=text, help="go on with a run")
    build.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="processes on this machine, one per GPU; accelerate launch starts more",
    )  # fmt: skip
    build.add_argument("--dry-run", action="store_true", help="print the plan and stop")

    bench = verb("bench", "bench", "measure speed, cost and memory of a combination")
    run_options(bench)
    bench.add_argument("--repeats", type=int, default=5, metavar="N")
    bench.add_argument("--json", action="store_true")
    bench.set_defaults(out=None, init=None)

    listing = verb("list", "listing", "list parts and presets")
    listing.add_argument("family", nargs="?", help="encoders, bridges, …, or plugins")
    listing.add_argument("--json", action="store_true")
    listing.add_argument(
        "--check", action="store_true", help="with plugins: also load what each of them names"
    )
    show = verb("show", "listing", "everything about one part, preset or recipe")
    show.add_argument("name")
    show.add_argument("--json", action="store_true")

    plugins = verb("plugins", "plugins", "start a plugin package with a part of your own")
    plugins.add_argument("action", choices=["new"])
    plugins.add_argument("name", help="of the part; the distribution is called rpiae-NAME")
    plugins.add_argument(
        "--out", metavar="FOLDER", type=text, help="new folder (default: rpiae-NAME)"
    )
    plugins.add_argument(
        "--family", default="bridges", metavar="FAMILY",
        help="encoders, bridges (the default), decoders, losses or datasets",
    )  # fmt: skip

    config = verb("config", "config", "make or check a config file")
    config.add_argument("action", choices=["new", "check"])
    config.add_argument("file", help="a TOML file; - is standard output for new")

    doctor = verb("doctor", "doctor", "what this machine has, and what would be used")
    doctor.add_argument("--json", action="store_true")

    fetch = verb("fetch", "fetch", "download what a part loads into the local cache")
    fetch.add_argument("name", help="an encoder, loss or critic")

    reconstruct = verb("reconstruct", "reconstruct", "a photograph through a tokenizer and back")
    reconstruct.add_argument("run", help="a run's or tokenizer's folder")
    reconstruct.add_argument("photo")
    reconstruct.add_argument("--out", required=True, metavar="PNG", help="side-by-side picture")
    reconstruct.add_argument("--tile", action="store_true", help="in blended, overlapping tiles")
    reconstruct.add_argument("--device", default="auto")
    return top

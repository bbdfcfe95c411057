"""The verbs, exit codes and error messages."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from attrs import frozen

import rpiae
from rpiae.cli.launch import speaks
from rpiae.core.errors import RpiaeError, RunError, UsageError
from rpiae.core.runtime.names import printable, shown
from rpiae.core.runtime.output import steady_output

EPILOG = """exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (state saved)

examples:
  rpiae build
  rpiae build --encoder dinov2-b --bridge vb64 --data folder:photos
  rpiae build --encoder dinov2-b --bridge vb64 --dry-run
  rpiae reconstruct runs/a photo.jpg --out side_by_side.png
  rpiae encode runs/a folder:photos --out latents --flip --dtype bf16
  rpiae decode latents --out pictures --limit 64
  rpiae stats runs/a folder:photos
  rpiae diffuse latents --generator dit-b --out runs/g
  rpiae sample runs/g --classes 0-9 --guidance 1.5 --out samples.png
  rpiae export runs/a --to onnx --out there
  rpiae import qihoo360/RPiAE --out model
  rpiae import ep-0000800.pt --tokenizer model --out g
  rpiae eval runs/a --data folder:photos --metrics psnr,ssim,rfd:tiny
  rpiae ablate --vary bridge=vb8,vb16 --seeds 2 --out studies/x && rpiae report studies/x"""


@frozen
class Verb:
    """One word of the command line.

    Its module is imported when the verb is asked for, and imports torch when it runs.

    Attributes:
        module: of ``rpiae.cli``: a ``Command``.
        summary: what it does, in a line.
        torch: whether running it imports torch; ``new``, of any verb, does not.
    """

    module: str
    summary: str
    torch: bool = True


class Command(Protocol):
    """A verb's module."""

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Declare what the verb takes."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


VERBS: Mapping[str, Verb] = {
    "build": Verb("build", "plan, train and evaluate a tokenizer"),
    "bench": Verb("bench", "measure speed, cost and memory of a combination"),
    "ablate": Verb("ablate", "train and evaluate all runs of a study, or what is left of them"),
    "report": Verb("report", "one HTML page and one Markdown file of a study"),
    "list": Verb("listing", "list parts and presets", torch=False),
    "show": Verb("show", "everything about one part, preset or recipe", torch=False),
    "plugins": Verb("plugins", "start a plugin package with a part of your own"),
    "config": Verb("config", "make or check a config file"),
    "doctor": Verb("doctor", "what this machine has, and what would be used"),
    "fetch": Verb("fetch", "download what parts or a whole run load into the local cache"),
    "reconstruct": Verb("reconstruct", "a photograph through a tokenizer and back"),
    "diffuse": Verb("diffuse", "train a generator on latents, or all there is to one from nothing"),
    "encode": Verb("encode", "a whole dataset's latents, for a diffusion model"),
    "decode": Verb("decode", "latents to PNG files"),
    "stats": Verb("stats", "measure and store latent_norm: mean and std of the latents"),
    "sample": Verb("sample", "images, or latents, from a trained generator"),
    "export": Verb(
        "export", "a tokenizer as files of others: reference, diffusers, ONNX, torch.export"
    ),
    "import": Verb(
        "import_", "a tokenizer or generator of somebody else's, from its file or the hub"
    ),
    "push": Verb("push", "a tokenizer or generator to the Hugging Face hub, with its card"),
    "eval": Verb("eval", "measure a tokenizer: reconstruction, semantics, latents"),
    "probe": Verb("probe", "linear probe and k-NN of any encoder, pivot or fine-tuned"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with steady_output() as failures:
        code = _run(argv)
        sys.stdout.flush()
        if failures.stdout is None:
            return code
        if failures.stdout.errno != errno.EPIPE:  # whoever closes a pipe knows
            _complain(f"cannot write to standard output: {failures.stdout.strerror}")
    return code or 1


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parsed(argv)
    except SystemExit as ended:  # argparse has printed help, or what is wrong
        return int(ended.code or 0)
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    logging.getLogger("rpiae").setLevel(logging.DEBUG if arguments.debug else logging.WARNING)
    try:
        if VERBS[arguments.verb].torch and getattr(arguments, "action", "") != "new":
            _check_path()
        if arguments.imports:
            from rpiae.core.registry.importing import import_modules

            import_modules(arguments.imports)
        return _command(arguments.verb).run(arguments)
    except RpiaeError as error:
        if arguments.debug:
            raise
        if speaks() or isinstance(error, RunError):
            _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        _complain("interrupted")
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        _complain(_of_the_machine(error) or f"unexpected {_said(error)} (--debug shows where)")
        return 1


def _check_path() -> None:
    """Refuse a path that torch could not be imported from.

    Raises:
        RunError: if importing it would wait for ever.
    """
    from rpiae.core.registry.discovery import endless_entry_points

    file = endless_entry_points()
    if file is not None:
        raise RunError(
            f"{file} is no regular file: torch reads it when it is imported, and would wait for "
            "ever. Remove it"
        )


def _of_the_machine(error: Exception) -> str:
    """What the system refused, where that is all there is to say; else nothing."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory: {_said(error)}"
    return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}".removesuffix(": ")


def _complain(text: str) -> None:
    lines = (printable(line) for line in text.splitlines())
    print("rpiae: " + "\n".join(lines), file=sys.stderr)


def _command(verb: str) -> Command:
    return cast(Command, importlib.import_module(f"rpiae.cli.{VERBS[verb].module}"))


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what is wrong with it is said with the usage of its verb."""
    words = sys.argv[1:] if argv is None else list(argv)
    top = _parser(words)
    if not words:
        top.print_help()
        raise SystemExit(UsageError.exit_code)
    if null := [word for word in words if "\0" in word]:
        top.error(f"an argument holds a null character: {shown(null[0])}")
    arguments, rest = top.parse_known_args(words)
    arguments.imports = [*arguments.imports_before, *arguments.imports]
    arguments.debug = arguments.debug or arguments.debug_before
    if rest:
        arguments.usage.error(f"unrecognized arguments: {' '.join(map(printable, rest))}")
    return arguments


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """All verbs, and the options of those that are among the words."""
    top = argparse.ArgumentParser(
        prog="rpiae",
        description="Build representation-pivoted autoencoders from swappable parts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"rpiae {rpiae.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    # Before the verb and behind it; argparse would have the second forget the first.
    for options, where in ((top, "_before"), (common, "")):
        options.add_argument(
            "--debug", action="store_true", dest=f"debug{where}", help="tracebacks and debug logs"
        )
        options.add_argument(
            "--import", action="append", default=[], metavar="MODULE", dest=f"imports{where}",
            help="import a module first that registers parts of your own; repeatable",
        )  # fmt: skip
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        parser = verbs.add_parser(
            name, help=verb.summary, description=verb.summary, parents=[common]
        )
        parser.set_defaults(usage=parser)
        if name in words:
            _command(name).options(parser)
    return top

"""Arguments, exit codes and error messages."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence

import rpiae
from rpiae.cli.launch import speaks
from rpiae.core.errors import RpiaeError, RunError, UsageError
from rpiae.core.registry.discovery import endless_entry_points
from rpiae.core.registry.importing import import_modules
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
  rpiae eval runs/a --data folder:photos --metrics psnr,ssim,rfd:tiny
  rpiae ablate --vary bridge=vb8,vb16 --seeds 2 --out studies/x && rpiae report studies/x"""


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
        _check_path(arguments)
        import_modules(arguments.imports)
        command = importlib.import_module(f"rpiae.cli.{arguments.module}")
        return int(command.execute(arguments) or 0)
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


def _check_path(arguments: argparse.Namespace) -> None:
    """Whether torch can be imported, where a command does so.

    Raises:
        RunError: if it would wait for ever.
    """
    torch_free = arguments.module in ("listing", "plugins") or arguments.action == "new"
    file = None if torch_free else endless_entry_points()
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


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what is wrong with it is said with the usage of its verb."""
    top = parser()
    given = sys.argv[1:] if argv is None else list(argv)
    if not given:
        top.print_help()
        raise SystemExit(UsageError.exit_code)
    if null := [text for text in given if "\0" in text]:
        top.error(f"an argument holds a null character: {shown(null[0])}")
    arguments, rest = top.parse_known_args(given)
    arguments.imports = [*arguments.imports_before, *arguments.imports]
    arguments.debug = arguments.debug or arguments.debug_before
    if rest:
        arguments.usage.error(f"unrecognized arguments: {' '.join(map(printable, rest))}")
    return arguments


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

    def verb(name: str, module: str, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(module=module, usage=made, action=None)
        return made

    def text(given: str) -> str:
        if not given:
            raise argparse.ArgumentTypeError("it is empty")
        return given

    def whole(given: str) -> int:
        """A whole number that may not be long enough to keep anybody busy."""
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", given):
            raise argparse.ArgumentTypeError(f"expected a whole number, got {shown(given)}")
        return int(given)

    def positive(given: str) -> int:
        if (number := whole(given)) < 1:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least 1, got {shown(given)}"
            )
        return number

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
        verb.add_argument("--seed", type=whole)
        verb.add_argument("--device", metavar="NAME", type=text, help="auto, cpu, cuda or cuda:N")
        verb.add_argument("--precision", choices=["auto", "fp32", "bf16"])

    build = verb("build", "build", "plan, train and evaluate a tokenizer")
    run_options(build)
    build.add_argument(
        "--out", metavar="FOLDER", type=text, help="the run's folder (default: runs/…)"
    )
    build.add_argument("--init", metavar="FOLDER", type=text, help="start from a run's tokenizer")
    build.add_argument(
        "--parts", metavar="ROLES", type=text,
        help="with --init: whose weights are taken over, such as encoder,decoder (default: all)",
    )  # fmt: skip
    build.add_argument("--resume", metavar="FOLDER", type=text, help="go on with a run")
    build.add_argument(
        "--processes", type=positive, default=1, metavar="N",
        help="processes on this machine, one per GPU; accelerate launch starts more",
    )  # fmt: skip
    build.add_argument("--dry-run", action="store_true", help="print the plan and stop")

    bench = verb("bench", "bench", "measure speed, cost and memory of a combination")
    run_options(bench)
    bench.add_argument("--repeats", type=positive, default=5, metavar="N")
    bench.add_argument("--json", action="store_true")
    bench.set_defaults(out=None, init=None)

    ablate = verb(
        "ablate", "ablate", "train and evaluate all runs of a study, or what is left of them"
    )
    ablate.add_argument(
        "study", nargs="?", metavar="STUDY.TOML", help="a study; options change its base"
    )
    run_options(ablate)
    ablate.add_argument(
        "--vary", action="append", default=[], metavar="PATH=A,B,…",
        help="an axis, such as bridge=vb8,vb16 or recipe.stages[0].noise=0,0.4; repeatable",
    )  # fmt: skip
    ablate.add_argument("--seeds", type=positive, metavar="N", help="seeds 0 to N − 1 of every run")
    ablate.add_argument(
        "--eval-data", metavar="DATA", type=text, help="what finished runs are measured on"
    )
    ablate.add_argument(
        "--eval-train", metavar="DATA", type=text, help="what probes and neighbours learn from"
    )
    ablate.add_argument(
        "--metrics", metavar="NAMES", type=text,
        help="comma-separated (default: the study's, else psnr,ssim)",
    )  # fmt: skip
    ablate.add_argument(
        "--out", metavar="FOLDER", type=text, help="the study's folder (default: runs/NAME)"
    )
    ablate.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="runs at a time (default: 1)"
    )
    ablate.add_argument(
        "--executor", choices=["local", "submitit"], default="local",
        help="processes of this machine, or jobs of submitit",
    )  # fmt: skip
    ablate.add_argument(
        "--cluster", default="auto", metavar="NAME", help="with submitit: auto, slurm or local"
    )
    ablate.add_argument(
        "--job", action="append", default=[], metavar="NAME=VALUE",
        help="with submitit: a parameter of every job, such as slurm_partition=gpu; repeatable",
    )  # fmt: skip
    ablate.add_argument("--dry-run", action="store_true", help="print the runs and stop")
    ablate.add_argument("--json", action="store_true", help="with --dry-run")

    report = verb("report", "report", "one HTML page and one Markdown file of a study")
    report.add_argument("study", metavar="FOLDER", help="a study's folder")
    report.add_argument(
        "--out", metavar="FOLDER", type=text, help="where to (default: the study's folder)"
    )

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

    fetch = verb("fetch", "fetch", "download what parts or a whole run load into the local cache")
    fetch.add_argument(
        "names", nargs="*", metavar="NAME", help="an encoder, loss, critic or metric"
    )
    fetch.add_argument(
        "--study", metavar="FILE", type=text, help="a study's file: what its runs and metrics load"
    )
    fetch.add_argument(
        "--metrics", metavar="NAMES", type=text, help="of an evaluation, comma-separated"
    )
    fetch.add_argument("--init", metavar="FOLDER", type=text, help="what the run starts from")
    fetch.add_argument("--parts", metavar="ROLES", type=text, help="with --init, as in build")
    run_options(fetch)
    fetch.set_defaults(out=None)

    reconstruct = verb("reconstruct", "reconstruct", "a photograph through a tokenizer and back")
    reconstruct.add_argument("run", help="a run's or tokenizer's folder")
    reconstruct.add_argument("photo")
    reconstruct.add_argument("--out", required=True, metavar="PNG", help="side-by-side picture")
    reconstruct.add_argument("--tile", action="store_true", help="in blended, overlapping tiles")
    reconstruct.add_argument("--device", default="auto")

    def computing(verb: argparse.ArgumentParser) -> None:
        devices(verb)
        verb.add_argument(
            "--precision", choices=["fp32", "bf16"], default="fp32",
            help="what is computed in (default: fp32)",
        )  # fmt: skip

    def devices(verb: argparse.ArgumentParser) -> None:
        verb.add_argument(
            "--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:N"
        )
        verb.add_argument(
            "--batch-size",
            type=positive,
            metavar="N",
            help="per forward pass; no effect on results",
        )

    def crop_options(verb: argparse.ArgumentParser) -> None:
        verb.add_argument(
            "--image-size", type=positive, metavar="N",
            help="side of the centre crop (default: of the training crops)",
        )  # fmt: skip
        verb.add_argument(
            "--resize", type=positive, metavar="N",
            help="short side of every image before the crop (default of adm: --image-size)",
        )  # fmt: skip
        verb.add_argument(
            "--crop", choices=["adm", "centre"],
            help="adm, as published numbers on ImageNet: every image is resized, box filter then "
            "bicubic, then cropped; centre: as a run crops what it holds out (default: adm)",
        )  # fmt: skip

    def data_options(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("run", help="a run's or tokenizer's folder")
        verb.add_argument("data", type=text, help="for example folder:PATH, parquet:PATH, sample")
        crop_options(verb)
        verb.add_argument("--workers", type=whole, metavar="N", help="processes that load images")
        verb.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides",
            help="set one field of the dataset, such as data.column=img; repeatable",
        )  # fmt: skip
        verb.add_argument(
            "--seed", type=whole, default=0, help="of --posterior sample (default: 0)"
        )
        computing(verb)

    encode = verb("encode", "encode", "a whole dataset's latents, for a diffusion model")
    data_options(encode)
    encode.add_argument("--out", required=True, metavar="FOLDER", type=text)
    encode.add_argument("--label-column", metavar="NAME", type=text, help="of a Parquet file")
    encode.add_argument("--posterior", choices=["mode", "sample", "moments"], default="mode")
    encode.add_argument(
        "--moments", action="store_const", const="moments", dest="posterior",
        help="store mean and logvar: --posterior moments",
    )  # fmt: skip
    encode.add_argument("--flip", action="store_true", help="store mirrored images' latents too")
    encode.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32")
    encode.add_argument(
        "--shard-size", type=positive, default=4096, metavar="N", help="images per file"
    )
    encode.add_argument(
        "--processes", type=positive, default=1, metavar="N",
        help="processes on this machine, one per GPU; accelerate launch starts more",
    )  # fmt: skip

    decode = verb("decode", "decode", "latents to PNG files")
    decode.add_argument("latents", help="what encode wrote, or a .safetensors, .npy or .pt file")
    decode.add_argument("--out", required=True, metavar="FOLDER", type=text)
    decode.add_argument(
        "--run", metavar="FOLDER", type=text, help="the tokenizer (default: its own)"
    )
    decode.add_argument("--limit", type=positive, metavar="N", help="decode the first N")
    decode.add_argument(
        "--normalised", action="store_true", help="undo the tokenizer's latent_norm first"
    )
    decode.add_argument(
        "--normalised-by", metavar="FOLDER", type=text,
        help="undo the normalisation of a folder of latents first",
    )  # fmt: skip
    computing(decode)

    stats = verb("stats", "stats", "measure and store latent_norm: mean and std of the latents")
    data_options(stats)
    stats.add_argument("--images", type=positive, metavar="N", help="look at N, always the same")
    stats.add_argument("--posterior", choices=["mode", "sample"], default="mode")
    stats.add_argument("--dry-run", action="store_true", help="print and store nothing")
    stats.add_argument("--json", action="store_true")

    def measuring(verb: argparse.ArgumentParser, fields: str) -> None:
        verb.add_argument(
            "--images", type=positive, metavar="N", help="measure on N, always the same"
        )
        verb.add_argument(
            "--train-images", type=positive, metavar="N", help="learn from N, always the same"
        )
        crop_options(verb)
        verb.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides",
            help=f"set one field of a dataset, by {fields}; repeatable",
        )  # fmt: skip
        devices(verb)
        verb.add_argument(
            "--precision", choices=["auto", "fp32", "bf16"],
            help="what the tokenizer is computed in; auto: bf16 where it is faster (default: fp32)",
        )  # fmt: skip
        verb.add_argument("--json", action="store_true")

    evaluate = verb("eval", "eval", "measure a tokenizer: reconstruction, semantics, latents")
    evaluate.add_argument("runs", nargs="+", metavar="RUN", help="a run's or tokenizer's folder")
    evaluate.add_argument(
        "--data", metavar="DATA", type=text,
        help="images to measure on, such as parquet:PATH (default: the run's held-out ones)",
    )  # fmt: skip
    evaluate.add_argument(
        "--train", metavar="DATA", type=text, help="images for probes and neighbours to learn from"
    )
    evaluate.add_argument(
        "--metrics", default="psnr,ssim,rfd:tiny,drift,latents", metavar="NAMES",
        help="comma-separated, such as psnr,rfd:dinov2-b,ifd:tiny,probe (rpiae list metrics)",
    )  # fmt: skip
    evaluate.add_argument(
        "--reference", metavar="FILE", type=text,
        help="the originals' Fréchet statistics, from --write-reference",
    )  # fmt: skip
    evaluate.add_argument(
        "--write-reference", metavar="FILE", type=text, help="write these to a .safetensors file"
    )
    evaluate.add_argument(
        "--processes", type=positive, default=1, metavar="N",
        help="processes on this machine, one per GPU; accelerate launch starts more",
    )  # fmt: skip
    evaluate.add_argument(
        "--round", choices=["nearest", "truncate"], default="nearest",
        help="how decoded images are brought to 8 bits (default: nearest)",
    )  # fmt: skip
    measuring(evaluate, "data.column=img or train.column=img")

    probe = verb("probe", "probe", "linear probe and k-NN of any encoder, pivot or fine-tuned")
    probe.add_argument("encoder", help="an encoder's name, or a run's or tokenizer's folder")
    probe.add_argument("--train", required=True, metavar="DATA", type=text, help="learned from")
    probe.add_argument("--test", required=True, metavar="DATA", type=text, help="measured on")
    probe.add_argument("--k", type=positive, default=20, metavar="N", help="neighbours that vote")
    probe.add_argument(
        "--rotation", action="store_true", help="also tell how images are turned, a label-free task"
    )
    measuring(probe, "train.column=img or test.column=img")
    return top

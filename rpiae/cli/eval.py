"""``rpiae eval``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from rpiae.cli.judging import generation_job, generation_options, sampling_given
from rpiae.cli.measuring import (
    Job,
    images_of,
    measured,
    measuring_config,
    spaces_of,
    with_reference,
)
from rpiae.cli.options import measuring_options, nonempty, positive, processes_option
from rpiae.core.errors import UsageError

if TYPE_CHECKING:
    from rpiae.evaluation.configs import EvaluationConfig

#: Fréchet distances of reconstructions, which can have a reference.
DISTANCES = ("rfd", "rfid", "rfvd")


def options(parser: argparse.ArgumentParser) -> None:
    """Tokenizers or generated images, what is measured of them, and on what."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="the folder of a tokenizer, a generator or a run of either, or user/name[@revision] of the "
        "hub; a file (.npz) or folder of samples",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="DATA", type=nonempty,
        help="images or clips to measure on, such as parquet:PATH or videos:PATH (default: the "
        "run's held-out ones); real images that samples are compared with",
    )  # fmt: skip
    parser.add_argument(
        "--train",
        metavar="DATA",
        type=nonempty,
        help="images for probes and neighbours to learn from",
    )
    parser.add_argument(
        "--metrics", metavar="NAMES",
        help="comma-separated, such as psnr,rfd:dinov2-b,ifd:tiny,probe (rpiae list metrics; "
        "default: psnr,ssim,rfd:tiny,drift,latents, and temporal,flicker,rfvd:tiny of clips; of "
        "generated images gfd:tiny,precision,recall)",
    )  # fmt: skip
    parser.add_argument(
        "--reference", metavar="FILE", type=nonempty,
        help="the real images' Fréchet statistics, from --write-reference",
    )  # fmt: skip
    parser.add_argument(
        "--write-reference",
        metavar="FILE",
        type=nonempty,
        help="write these to a .safetensors file",
    )
    parser.add_argument(
        "--every", metavar="N", type=positive, default=1,
        help="send every N-th frame of clips through the tokenizer and interpolate those in "
        "between: what a tokenizer that compresses time has to beat; nothing is stored",
    )  # fmt: skip
    processes_option(parser)
    parser.add_argument(
        "--round", choices=["nearest", "truncate"], default="nearest",
        help="how decoded images are brought to 8 bits (default: nearest)",
    )  # fmt: skip
    measuring_options(parser, fields="data.column=img or train.column=img")
    generation_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure tokenizers, or generated images, and print the numbers."""
    from rpiae.core.model.places import named_place
    from rpiae.evaluation.saved_generation import is_generation

    folders = [named_place(word) for word in arguments.runs]
    of_samples = [folder for folder in folders if is_generation(folder)]
    if of_samples and len(of_samples) < len(folders):
        other = next(folder for folder in folders if folder not in of_samples)
        raise UsageError(
            f"{of_samples[0]} is of generated images and {other} is not: they have no number in common, "
            "so measure one kind at a time"
        )
    if arguments.write_reference and len(folders) > 1:
        raise UsageError("--write-reference goes with one run: a reference is of images alone")
    job = generation_job(arguments, folders) if of_samples else _tokenizer_job(arguments, folders)
    return measured(arguments, job)


def _tokenizer_job(arguments: argparse.Namespace, folders: Sequence[Path]) -> Job:
    from rpiae.core.model.folders import tokenizer_folder
    from rpiae.evaluation.panel import check_subject, metric_configs
    from rpiae.evaluation.saved import evaluate_saved
    from rpiae.evaluation.subjects import results_folder

    if given := sampling_given(arguments):
        raise UsageError(
            f"{' and '.join(given)} say how a generator is sampled, and {folders[0]} is none: name the "
            "run of a generator, or leave them out"
        )
    config = measuring_config(arguments)
    for folder in folders:
        tokenizer_folder(folder)
    configs = {each: _with_metrics(each, config, arguments.reference) for each in folders}
    for each in configs.values():
        check_subject(metric_configs(each.metrics), generated=False)
    return Job(
        configs=configs, evaluate=partial(evaluate_saved, every=arguments.every),
        results=results_folder, told=_protocol, keeps=arguments.every == 1,
    )  # fmt: skip


def _with_metrics(folder: Path, config: EvaluationConfig, reference: str) -> EvaluationConfig:
    """The evaluation of a run, with the usual metrics where none are named, of which the one Fréchet
    distance has the reference that is given."""
    from rpiae.evaluation.subjects import default_metrics

    names = config.metrics or default_metrics(folder, config)
    if not reference:
        return evolve(config, metrics=names)
    return evolve(config, metrics=with_reference(names, reference, DISTANCES, "reconstructions"))


def _protocol(protocol: Mapping[str, Any]) -> list[str]:
    """What numbers depend on besides the tokenizer, in words."""
    rounded = {"nearest": "rounded", "truncate": "truncated"}[protocol["round"]]
    lines = [f"{images_of(protocol)}, tokenizer in {protocol['precision']}, {rounded} to 8 bits"]
    if "interpolated" in protocol:
        lines.append(protocol["interpolated"])
    if "training" in protocol:
        lines.append(f"learned from {images_of(protocol['training'])}")
    return lines + spaces_of(protocol)

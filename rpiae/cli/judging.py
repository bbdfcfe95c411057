"""``rpiae eval`` of generated images: how they are made, and what numbers about them depend on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve

from rpiae.cli.measuring import Job, images_of, measuring_config, spaces_of, with_reference
from rpiae.cli.options import nonempty, positive, whole
from rpiae.cli.sample import sampling_config, sampling_options
from rpiae.core.errors import UsageError

if TYPE_CHECKING:
    from rpiae.evaluation.configs import GenerationEvaluationConfig

#: Fréchet distances of generated images, which can have a reference.
DISTANCES = ("gfd",)


def generation_options(parser: argparse.ArgumentParser) -> None:
    """Which samples of a generator are measured, and how they are made."""
    samples = parser.add_argument_group("of generated images")
    samples.add_argument(
        "--count", type=positive, metavar="N",
        help="samples (default: 5000 of a generator, all of a file or folder)",
    )  # fmt: skip
    samples.add_argument(
        "--labels", choices=["equal", "random", "none"], default="equal",
        help="as many samples of every class, drawn, or no class (default: equal)",
    )  # fmt: skip
    samples.add_argument("--seed", type=whole, default=0, help="of samples (default: 0)")
    samples.add_argument(
        "--tokenizer", metavar="FOLDER", type=nonempty, help="the generator's (default: its own)"
    )
    sampling_options(parser)


def sampling_given(arguments: argparse.Namespace) -> list[str]:
    """The options about samples that are given with other values than the usual ones."""
    from rpiae.sampling.configs import SamplingConfig

    usual = {"count": None, "labels": "equal", "seed": 0, "tokenizer": None}
    usual |= asdict(SamplingConfig())
    return [f"--{name}" for name, value in usual.items() if getattr(arguments, name) != value]


def generation_job(arguments: argparse.Namespace, places: Sequence[Path]) -> Job:
    """The evaluation of generators, or of samples in files and folders.

    Raises:
        UsageError: if options contradict each other, or have no effect.
    """
    from rpiae.evaluation.panel import check_subject, metric_configs
    from rpiae.evaluation.saved_generation import (
        evaluate_generated,
        generated_results,
        holds_samples,
    )

    if arguments.every > 1:
        raise UsageError("--every is about clips and their tokenizer: leave it out")
    if arguments.image_size is not None:
        raise UsageError(
            "--image-size: real images are cropped to the size of the samples, which are never resized: "
            "leave it out; --resize says how large images are before the crop"
        )
    config = _config(arguments)
    check_subject(metric_configs(config.metrics), generated=True)
    given = [name for name in sampling_given(arguments) if name != "--count"]
    given += ["--precision"] if arguments.precision else []
    given += ["--round"] if arguments.round != "nearest" else []
    made = [place for place in places if holds_samples(place)]
    if made and given:
        raise UsageError(
            f"{' and '.join(given)} say how samples are made, and those of {made[0]} are made: leave "
            "them out"
        )
    return Job(
        configs=dict.fromkeys(places, config), evaluate=evaluate_generated,
        results=generated_results, told=_protocol, precise=len(made) < len(places),
    )  # fmt: skip


def _config(arguments: argparse.Namespace) -> GenerationEvaluationConfig:
    from rpiae.evaluation.configs import GenerationEvaluationConfig

    asked = measuring_config(arguments)
    usual = GenerationEvaluationConfig()
    config = GenerationEvaluationConfig(
        **{name: getattr(asked, name) for name in asdict(asked, recurse=False)}
    )
    metrics = asked.metrics or usual.metrics
    if arguments.reference:
        metrics = with_reference(metrics, arguments.reference, DISTANCES, "generated images")
    return evolve(
        config, metrics=metrics, count=arguments.count, labels=arguments.labels,
        seed=arguments.seed, sampling=sampling_config(arguments),
        tokenizer=arguments.tokenizer or "",
    )  # fmt: skip


def _protocol(protocol: Mapping[str, Any]) -> list[str]:
    """What numbers depend on besides the generator, in words."""
    samples = protocol["samples"]
    lines = [_samples(samples)]
    if "real" in protocol:
        lines.append(f"compared with {images_of(protocol['real'])}")
    if "training" in protocol:
        lines.append(f"learned from {images_of(protocol['training'])}")
    for name, facts in protocol["metrics"].items():
        if "reference" in facts:
            of = facts["reference"]
            lines.append(
                f"{name}: compared with {of['count']} images of {of['location']} ({of['crop']}), "
                f"sha256 {of['images_sha256'][:16]}, by their statistics"
            )
    return lines + spaces_of(protocol)


def _samples(samples: Mapping[str, Any]) -> str:
    """Samples and how they were made, in words."""
    count = f"{samples['count']} samples of {samples['location']}"
    digest = f"sha256 {samples['images_sha256'][:16]}"
    if "steps" not in samples:
        return f"{count}, made elsewhere, {digest}"
    what = "points" if samples["points"] else "steps"
    labels = {"equal": "equal labels", "random": "random labels", "none": "no labels"}
    guidance = "no guidance"
    if samples["guidance"] != 1:
        low, high = samples["interval"]
        away = f" away from {samples['guide']}" if samples["guide"] else ""
        guidance = f"guidance {samples['guidance']:g}{away} on [{low:g}, {high:g}]"
    rounded = {"nearest": "rounded", "truncate": "truncated"}[samples["round"]]
    return (
        f"{count}, {labels[samples['labels']]}, {samples['steps']} {what} of {samples['sampler']} to "
        f"{samples['end']:g}, {guidance}, seed {samples['seed']}, in {samples['precision']}, {rounded} "
        f"to 8 bits, {digest}"
    )

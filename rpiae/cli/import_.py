"""``rpiae import``."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from rpiae.cli.options import nonempty, positive
from rpiae.cli.screen import count, stdout

if TYPE_CHECKING:
    from rpiae.core.model.latent_generator import LatentGenerator
    from rpiae.core.model.tokenizer import RPiAE


#: Options that are words, called as what is told.
_WORDS = (
    "encoder", "encoder_weights", "stats", "weights_key", "tokenizer", "file", "revision",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    """A file of somebody else, and what it leaves open."""
    parser.add_argument(
        "source",
        help="a tokenizer of RPiAE, a decoder of RAE, a generator of RPiAE, or a folder of diffusers' "
        "AutoencoderRAE: a file, a folder, or a repository of the hub such as qihoo360/RPiAE",
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", type=nonempty, help="the model's folder"
    )
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", type=nonempty,
        help="of a generator: the tokenizer, or its run, whose latents it was trained on",
    )  # fmt: skip
    parser.add_argument(
        "--encoder", metavar="NAME", type=nonempty,
        help="of a decoder alone: its encoder, a preset or a folder of transformers",
    )  # fmt: skip
    parser.add_argument(
        "--encoder-weights", metavar="FILE", type=nonempty,
        help="take the preset's weights from a file",
    )  # fmt: skip
    parser.add_argument(
        "--stats", metavar="FILE", type=nonempty,
        help="mean and var of the features, where they are normalised",
    )  # fmt: skip
    parser.add_argument(
        "--config", dest="configs", action="append", default=[], metavar="FILE", type=nonempty,
        help="a config of the reference (YAML) or of transformers (config.json, preprocessor_config.json), "
        "or a folder of them; those beside the file are found without it. May be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--weights-key", default="", metavar="KEY",
        help="take other weights than the averaged ones, such as model",
    )  # fmt: skip
    parser.add_argument(
        "--file", metavar="NAME", type=nonempty,
        help="which file of the repository or folder",
    )  # fmt: skip
    parser.add_argument(
        "--revision", metavar="NAME", type=nonempty,
        help="branch, tag or commit of the repository",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    _open_questions(parser.add_argument_group("what tensors and configs may leave open"))


def _open_questions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--heads", type=positive, metavar="N",
        help="attention heads, of a tokenizer's encoder or of a generator",
    )  # fmt: skip
    group.add_argument(
        "--decoder-heads", type=positive, metavar="N",
        help="attention heads of a tokenizer's decoder",
    )  # fmt: skip
    group.add_argument("--eps", type=float, metavar="X", help="epsilon of the encoder's norms")
    group.add_argument(
        "--mean", type=float, nargs=3, metavar=("R", "G", "B"),
        help="what is subtracted from the encoder's input in [0, 1]",
    )  # fmt: skip
    group.add_argument(
        "--std", type=float, nargs=3, metavar=("R", "G", "B"), help="what it is then divided by"
    )
    group.add_argument(
        "--head-depth", type=positive, metavar="N", help="blocks of a generator's wide head"
    )
    group.add_argument(
        "--classes", type=positive, metavar="N",
        help="a generator's classes, where the table of labels has no row for none of them",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Read the source, write the folder, and say what it is."""
    from rpiae.core.model.folders import save_tokenizer
    from rpiae.core.model.generator_folders import save_generator
    from rpiae.core.model.tokenizer import RPiAE
    from rpiae.interop.importing import import_model
    from rpiae.interop.reference.facts import Told

    told = Told(
        **{name: getattr(arguments, name) or "" for name in _WORDS},
        configs=tuple(arguments.configs), num_heads=arguments.heads,
        decoder_heads=arguments.decoder_heads, eps=arguments.eps,
        mean=arguments.mean and tuple(arguments.mean), std=arguments.std and tuple(arguments.std),
        head_depth=arguments.head_depth, num_classes=arguments.classes,
    )  # fmt: skip
    found = import_model(arguments.source, told=told)
    if isinstance(found.model, RPiAE):
        folder = save_tokenizer(found.model, arguments.out)
        report, sentence = _of_tokenizer(found.model)
    else:
        folder = save_generator(found.model, arguments.out)
        report, sentence = _of_generator(found.model)
    kind, parameters = found.kind, sum(math.prod(p.shape) for p in found.model.parameters())
    if arguments.json:
        report = {kind: str(folder), "parameters": parameters, **report}
        report |= {"layout": found.layout, "read": found.read, "notes": found.notes}
        print(json.dumps(report, indent=2))
        return 0
    stdout.print(f"wrote {folder}: {count(parameters)} parameters, {sentence}", soft_wrap=True)
    for note in found.notes:
        stdout.print(f"  {note}", soft_wrap=True)
    return 0


def _of_tokenizer(model: RPiAE) -> tuple[dict[str, Any], str]:
    """What a report has of a tokenizer, and a sentence."""
    size = model.trained_size
    latent = model.latent_shape(size, size)
    normalised = model.feature_mean is not None
    report = {"latent": list(latent), "image_size": size, "feature_norm": normalised}
    return report, (
        f"images of {size}×{size} pixels to latents of {'×'.join(map(str, latent))}"
        f"{', features normalised' if normalised else ''}"
    )


def _of_generator(model: LatentGenerator) -> tuple[dict[str, Any], str]:
    """What a report has of a generator, and a sentence."""
    facts = model.facts
    report = {
        "latent": list(facts.shape), "num_classes": facts.num_classes, "tokenizer": facts.tokenizer,
        "tokenizer_sha256": facts.tokenizer_sha256, "shift": model.shift,
    }  # fmt: skip
    return report, (
        f"latents {'×'.join(map(str, facts.shape))} of the tokenizer in {facts.tokenizer}, "
        f"{facts.num_classes} classes, shift of time {model.shift:.3g}"
    )

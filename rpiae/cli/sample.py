"""``rpiae sample``."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from rpiae.cli.launch import launch, launched, speaks, this_command
from rpiae.cli.options import computing_options, nonempty, positive, processes_option, whole
from rpiae.cli.progress import Bar
from rpiae.cli.screen import stderr, stdout
from rpiae.core.errors import UsageError
from rpiae.core.runtime.names import shown

if TYPE_CHECKING:
    import torch

    from rpiae.core.model.latent_generator import LatentGenerator
    from rpiae.sampling.configs import SamplingConfig
    from rpiae.sampling.loaded import LoadedGenerator
    from rpiae.sampling.plan import SamplingPlan

#: Samples of each class, and in all, where nobody says.
PER_CLASS, COUNT = 8, 64

#: Samples of one command at most.
MOST = 100_000_000

#: Classes up to which each has a column of a sheet.
MOST_COLUMNS = 20


def options(parser: argparse.ArgumentParser) -> None:
    """A generator, what is asked of it, how it is sampled, and what samples become."""
    parser.add_argument(
        "run", help="a generator's folder or its run's, or user/name[@revision] of the hub"
    )
    parser.add_argument(
        "--out", default="samples.png", metavar="NAME", type=nonempty,
        help="a sheet (.png), ADM's samples (.npz), latents (.safetensors), or a folder of PNG files "
        "(default: samples.png)",
    )  # fmt: skip
    asked = parser.add_argument_group("what is sampled")
    asked.add_argument(
        "--classes", metavar="LIST", type=nonempty,
        help="numbers, ranges and names, comma-separated, such as 0-9 or cat,ship (default: all)",
    )  # fmt: skip
    asked.add_argument(
        "--per-class", type=positive, metavar="N",
        help=f"samples of each class (default with --classes: {PER_CLASS})",
    )  # fmt: skip
    asked.add_argument(
        "--count", type=positive, metavar="N", help="samples in all, as many of every class"
    )
    asked.add_argument(
        "--labels", choices=["equal", "random", "none"], default="equal",
        help="of --count: as many of every class, drawn, or no class (default: equal)",
    )  # fmt: skip
    asked.add_argument("--seed", type=whole, default=0, help="of the noise (default: 0)")
    sampling_options(parser)
    parser.add_argument("--tokenizer", metavar="FOLDER", type=nonempty, help="(default: its own)")
    parser.add_argument(
        "--compare", action="store_true", help="unguided samples beside guided ones"
    )
    parser.add_argument("--preview", metavar="FILE.png", type=nonempty, help="the newest samples")
    parser.add_argument(
        "--truncate", action="store_true", help="round pixels down, as the reference does"
    )
    computing_options(parser)
    processes_option(parser)
    parser.add_argument("--json", action="store_true")


def sampling_options(parser: argparse.ArgumentParser) -> None:
    """How samples are made; ``sampling_config`` reads it."""
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=whole, default=50, metavar="N", help="(default: 50)")
    how.add_argument("--sampler", choices=["euler", "heun"], default="euler")
    how.add_argument(
        "--guidance", type=float, default=1.0, metavar="W", help="scale; 1 is none (default: 1)"
    )
    how.add_argument(
        "--interval", type=interval, default=(0.0, 1.0), metavar="LO,HI",
        help="times inside of which guidance acts; 0 is data, 1 noise (default: 0,1)",
    )  # fmt: skip
    how.add_argument(
        "--guide", default="", metavar="RUN", help="a weaker generator to be guided away from"
    )
    how.add_argument(
        "--end", type=float, default=0.0, metavar="T", help="where the last step ends (default: 0)"
    )
    how.add_argument(
        "--points", action="store_true",
        help="--steps counts points, of which there is one more, as in the reference",
    )  # fmt: skip


def interval(word: str) -> tuple[float, float]:
    """Two numbers with a comma between them; the type of an option."""
    found = re.fullmatch(r"\s*([^,]{1,40}),([^,]{1,40})", word)
    try:
        if found is None:
            raise ValueError
        return float(found[1]), float(found[2])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected two numbers, such as 0.1,0.9, got {shown(word)}"
        ) from None


def sampling_config(arguments: argparse.Namespace) -> SamplingConfig:
    """The ``SamplingConfig`` that the options describe.

    Raises:
        UsageError: if a value makes no sense.
    """
    from rpiae.sampling.configs import SamplingConfig

    names = ("steps", "sampler", "guidance", "interval", "guide", "end", "points")
    return SamplingConfig(**{name: getattr(arguments, name) for name in names})


def run(arguments: argparse.Namespace) -> int:
    """Sample a generator."""
    try:
        return _sample(arguments)
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        if speaks():
            _say_how_to_go_on(arguments)
        return 130


def _sample(arguments: argparse.Namespace) -> int:
    from rpiae.core.runtime.devices import choose_device
    from rpiae.core.runtime.processes import Runtime
    from rpiae.sampling.job import check_output, make_samples

    config = sampling_config(arguments)  # what is wrong with it is said before anything is loaded
    out = Path(arguments.out)
    preview = Path(arguments.preview) if arguments.preview else None
    if arguments.processes > 1 and not launched():
        choose_device(arguments.device)
        plan, _, _ = _planned(arguments, config, "cpu")
        check_output(plan, out, preview)
        return launch(arguments.processes, go_on=f"the same command: {this_command()}")
    runtime = Runtime(device=arguments.device, precision=arguments.precision)
    plan, notice, generator = _planned(arguments, config, runtime.device)
    if notice and speaks():
        stderr.print(f"note: {notice}", soft_wrap=True)
    happened = make_samples(
        generator, plan, out, runtime=runtime, batch_size=arguments.batch_size, preview=preview
    )
    rate = told(happened)
    runtime.close()
    if runtime.is_main:
        _summarise(arguments, plan, rate)
    return 0


def _planned(
    arguments: argparse.Namespace, config: SamplingConfig, device: torch.device | str
) -> tuple[SamplingPlan, str, LoadedGenerator]:
    """What is to be made, what is to be said of it, and the generator."""
    from rpiae.sampling.loaded import load_generator
    from rpiae.sampling.plan import make_plan

    generator = load_generator(
        arguments.run, tokenizer=arguments.tokenizer, device=device, precision=arguments.precision
    )
    asked = asked_for(arguments, generator.model)
    plan = make_plan(
        generator, config, asked.labels, Path(arguments.out), seed=arguments.seed,
        columns=asked.columns, compare=arguments.compare, truncate=arguments.truncate,
        batch_size=arguments.batch_size,
    )  # fmt: skip
    return plan, asked.notice, generator


@frozen(kw_only=True)
class Asked:
    """What the options ask for.

    Attributes:
        labels: class of each sample.
        columns: of a sheet of them.
        notice: what is to be said of it.
    """

    labels: tuple[int, ...]
    columns: int
    notice: str = ""


def asked_for(arguments: argparse.Namespace, model: LatentGenerator) -> Asked:
    """The classes of the samples that the options ask for.

    Raises:
        UsageError: if there is no such class, or options contradict each other.
    """
    from rpiae.sampling.classes import equal_labels, labels_in, random_labels, uneven

    if arguments.count and arguments.per_class:
        raise UsageError(
            "--count is of all classes together and --per-class of each: leave one out"
        )
    if arguments.labels != "equal" and (arguments.classes or arguments.per_class):
        raise UsageError(
            f"--labels {arguments.labels} says what is sampled: leave out --classes and --per-class"
        )
    total, names = model.num_classes, model.facts.label_names
    chosen: Sequence[int] | None = None
    if arguments.classes:
        chosen = labels_in(arguments.classes, num_classes=total, names=names)
    elif arguments.per_class and not total:
        raise UsageError("the generator knows no classes: say --count instead of --per-class")
    elif arguments.per_class:
        chosen = range(total)
    if chosen is not None and not arguments.count:
        each = arguments.per_class or PER_CLASS
        _check_count(each * len(chosen))
        return Asked(labels=tuple(label for label in chosen for _ in range(each)), columns=each)
    classes = chosen or range(total)
    count = arguments.count or _round_count(len(classes) if arguments.labels == "equal" else 1)
    _check_count(count)
    if arguments.labels == "none" or not classes:
        return Asked(labels=(total,) * count, columns=_square(count))
    if arguments.labels == "random":
        drawn = random_labels(total, count, arguments.seed)
        return Asked(labels=drawn, columns=_square(count))
    return Asked(
        labels=equal_labels(classes, count), notice=uneven(classes, count),
        columns=len(classes) if 1 < len(classes) <= MOST_COLUMNS else _square(count),
    )  # fmt: skip


def _round_count(classes: int) -> int:
    """How many are sampled where nobody says: as many of every class, where they are few."""
    return COUNT // classes * classes if 0 < classes <= COUNT else COUNT


def _square(count: int) -> int:
    return math.isqrt(count - 1) + 1


def _check_count(count: int) -> None:
    if count > MOST:
        raise UsageError(f"{count} samples are more than one command makes: ask for {MOST} at most")


def told(happened: Iterable[Any]) -> float:
    """Say what happens; samples per second in the end."""
    from rpiae.latents.pace import Progressed
    from rpiae.latents.writing import Notice
    from rpiae.sampling.job import Started

    rate = 0.0
    with Bar("sample") as bar:
        for event in happened:
            if not speaks():
                continue
            if isinstance(event, Notice):
                bar.say(event.text)
            elif isinstance(event, Started):
                there = f", {event.kept} of them are there already" if event.kept else ""
                bar.say(f"samples: {event.plan.num_images}{there}")
            elif isinstance(event, Progressed):
                rate = event.images_per_second
                bar.images(event.done, event.total, rate, what="samples")
    return rate


def _summarise(arguments: argparse.Namespace, plan: SamplingPlan, rate: float) -> None:
    classes = len(set(plan.labels))
    if arguments.json:
        made = {
            "out": arguments.out, "samples": plan.num_images, "classes": classes,
            "samples_per_second": rate, "settings": plan.settings(),
        }  # fmt: skip
        print(json.dumps(made, indent=2))
        return
    stdout.print(
        f"{arguments.out}: {plan.num_images} samples, classes: {classes}, {rate:.3g} samples/s",
        soft_wrap=True,
    )


def _say_how_to_go_on(arguments: argparse.Namespace) -> None:
    from rpiae.sampling.job import work_folder

    work = work_folder(Path(arguments.out))
    there = sorted(work.glob("*-of-*.safetensors"))
    total = there[0].stem.rpartition("-")[2].lstrip("0") if there else ""
    complete = f"{len(there)} of {total}" if there else "no"
    stderr.print(
        f"interrupted: {complete} files of samples are complete and stay in {work}. Go on with:\n"
        f"  {this_command()}",
        soft_wrap=True,
    )

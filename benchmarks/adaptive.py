"""What the adaptive pivot weight costs over a fixed one, in Stage I, by the way it is found.

    python benchmarks/adaptive.py [--precision bf16] [--rounds 4]

The three variants take turns, step by step, in one process; each figure is the median over rounds,
and ratios are to the fixed weight.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve

from rpiae import runs
from rpiae.core.model.build import build_tokenizer
from rpiae.core.runtime.processes import Precision, Runtime
from rpiae.core.training import events
from rpiae.core.training.objective import Objective, PivotReplica
from rpiae.core.training.trainer import TrainerInputs, train
from rpiae.testing import SyntheticImages

ADAPTIVE = "recipe.stages[0].terms[1].adaptive={layer='encoder'}"


def steps(adaptive: bool, precision: Precision, folder: Path) -> Iterator[float]:
    """Images per second of one Stage I step after another."""
    overrides = ("encoder.pretrained=false", "recipe.batch_size=8", "recipe.max_steps=1000")
    tree = {"encoder": "dinov2-s", "bridge": "vb64", "decoder": "vit-b", "recipe": "quick"}
    resolved = runs.resolve(tree, overrides=(*overrides, *([ADAPTIVE] if adaptive else [])))
    recipe = resolved.config.recipe
    model = build_tokenizer(resolved.tokenizer, seed=0)
    pivot = build_tokenizer(resolved.tokenizer, seed=0).roles["encoder"]
    inputs = TrainerInputs(
        model=model, data=SyntheticImages(256, count=8), folder=folder, seed=0,
        recipe=evolve(recipe, stages=recipe.stages[:1], evaluate_every=0, checkpoint_every=0),
        runtime=Runtime(device="cpu", precision=precision),
        replica=PivotReplica(
            pivot, output_patch=model.decoder.patch, downsampling=model.bridge.downsampling
        ),
        evaluate=lambda *_: {"psnr": 0.0},
    )  # fmt: skip
    for event in train(inputs):
        if isinstance(event, events.StepDone):
            yield event.images_per_second


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    junction = Objective.junction
    found: dict[str, list[float]] = {"fixed": [], "in the backward pass": [], "before it": []}
    with tempfile.TemporaryDirectory() as folder:
        running = {
            name: steps(name != "fixed", arguments.precision, Path(folder) / str(i))
            for i, name in enumerate(found)
        }
        for number in range(arguments.rounds + 1):
            for name, rates in found.items():
                Objective.junction = (  # type: ignore[method-assign]  # the way before this one
                    (lambda *_: None) if name == "before it" else junction
                )
                rate = next(running[name])
                if number:
                    rates.append(rate)
    fixed = statistics.median(found["fixed"])
    for name, rates in found.items():
        rate = statistics.median(rates)
        print(f"{name:>22}: {rate:.2f} images/s, step time × {fixed / rate:.3f}")


if __name__ == "__main__":
    main()

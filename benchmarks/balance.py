"""What adaptive weights cost over fixed ones, in Stage I.

    python benchmarks/balance.py [--precision bf16] [--rounds 4] [--encoder dinov2-s --decoder vit-b]

The variants take turns, step by step, in one process; each figure is the median over rounds, and
ratios are to the fixed weights of the same terms. Before a critic the goal is at most 1.05; with one,
exactness takes one more backward pass through the decoder.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rpiae import runs
from rpiae.core.model.build import build_tokenizer
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.data.synthetic import SyntheticImages
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.tasks.tokenizer.task import TokenizerTask

PIVOT = {"adaptive": {"layer": "encoder"}}
GAME = {"adaptive": {"layer": "decoder", "eps": 1e-6}}


def stage(pivot: dict[str, Any], game: dict[str, Any] | None) -> dict[str, Any]:
    """Stage I: L1 and the pivot, and a critic where one is wanted."""
    terms: list[dict[str, Any]] = [
        {"loss": "l1", "reference": True}, {"loss": "pivot", "weight": 0.5, **pivot},
    ]  # fmt: skip
    if game is not None:
        loss = {"name": "adversarial", "critic": {"name": "patch", "width": 16}}
        terms.append({"loss": loss, "weight": 0.5, **game})
    return {
        "name": "tune", "train": ["encoder", "decoder"], "use_bridge": False, "steps": 10**6,
        "terms": terms,
    }  # fmt: skip


VARIANTS = {
    "fixed": stage({}, None),
    "pivot adaptive": stage(PIVOT, None),
    "pivot adaptive, every 8th step": stage(
        {"adaptive": {"layer": "encoder", "refresh_every": 8}}, None
    ),
    "critic, fixed": stage({}, {}),
    "critic, both adaptive": stage(PIVOT, GAME),
}


def seconds(variant: dict[str, Any], options: argparse.Namespace, folder: Path) -> Iterator[float]:
    """Seconds of one step after another."""
    tree = {
        "encoder": options.encoder, "bridge": "vb64", "decoder": options.decoder,
        "recipe": {"name": "balance", "stages": [copy.deepcopy(variant)]},
    }  # fmt: skip
    overrides = ("encoder.pretrained=false", f"recipe.batch_size={options.batch_size}")
    resolved = runs.resolve(tree, overrides=(*overrides, "recipe.evaluate_every=0"))
    model = build_tokenizer(resolved.tokenizer, seed=0)
    pivot = build_tokenizer(resolved.tokenizer, seed=0).roles["encoder"]
    data = SyntheticImages(options.size, count=options.batch_size)
    replica = PivotReplica(
        pivot, output_patch=model.decoder.patch, downsampling=model.bridge.downsampling
    )
    inputs = TrainerInputs(
        task=TokenizerTask(model, replica=replica, evaluate=lambda *_: {}),
        recipe=resolved.config.recipe, data=data, folder=folder, seed=0,
        runtime=Runtime(device="cpu", precision=options.precision),
    )  # fmt: skip
    for event in train(inputs):
        if isinstance(event, events.StepDone):
            yield options.batch_size / event.images_per_second


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--encoder", default="dinov2-s")
    parser.add_argument("--decoder", default="vit-b")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        running = {
            name: seconds(variant, options, Path(folder) / str(i))
            for i, (name, variant) in enumerate(VARIANTS.items())
        }
        for number in range(options.rounds + 1):
            for name, steps in running.items():
                if number:
                    taken[name].append(next(steps))
                else:
                    next(steps)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        base = "critic, fixed" if name.startswith("critic") else "fixed"
        print(f"{name:>32}: {median:.2f} s per step, × {median / medians[base]:.3f} of {base!r}")


if __name__ == "__main__":
    main()

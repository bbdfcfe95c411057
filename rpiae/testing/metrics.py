"""Checks of a metric against ``rpiae.evaluation.examination.Metric``."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rpiae.core.config.parts import MetricConfig
from rpiae.core.model.build import build
from rpiae.core.model.tokenizer import RPiAE
from rpiae.evaluation.examination import (
    ComparedMetric,
    Examination,
    Measured,
    Metric,
    TrainedMetric,
)
from rpiae.evaluation.seen import Seen
from rpiae.tasks.tokenizer.replica import PivotReplica

#: What a metric may say that it needs.
NEEDS = frozenset({"training", "labels", "pivot", "latent", "clips", "samples", "real"})

#: What a metric goes over, in this order: how it takes images in, what it gathers of them, and which
#: metrics do. The last one is what is measured.
_WALKS = (
    ("update_training", "training_accumulators", TrainedMetric),
    ("update_real", "real_accumulators", ComparedMetric),
    ("update", "accumulators", Metric),
)

IMAGES = 24
FRAMES = 6
CLASSES = 3
ENCODER = {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "pretrained": False}
DECODER = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64}


def check_metric(config: MetricConfig) -> None:
    """A metric's numbers, and that these depend neither on batches nor on the number of processes.

    One that needs clips is shown clips, every other one images; one that needs samples sees these, and
    real images where it compares them.

    Args:
        config: of the metric.
    """
    assert config.needs <= NEEDS, f"it needs {sorted(config.needs - NEEDS)}, which nobody offers"
    whole = _measured(config, [IMAGES])
    assert whole.values, "it gives no numbers"
    for name, value in whole.values.items():
        assert isinstance(value, float), f"{name} is a {type(value).__name__}, not a float"
        assert math.isfinite(value), f"{name} is {value}"
    json.dumps([dict(whole.details), dict(whole.facts)])
    for what, found in (
        ("in batches", _measured(config, [5, 8, 11])),
        ("in two processes", _measured(config, [10, 14], processes=2)),
    ):
        assert found.values.keys() == whole.values.keys(), f"other numbers {what}"
        for name, value in whole.values.items():
            near = math.isclose(found.values[name], value, rel_tol=1e-4, abs_tol=1e-7)
            assert near, f"{name} is {value} of all images at once, {found.values[name]} {what}"


def _measured(config: MetricConfig, sizes: Sequence[int], *, processes: int = 1) -> Measured:
    """The metric of the same images in parts of these sizes, each part in a process of its own
    where there are several."""
    metrics = [config.build() for _ in range(processes)]
    for metric in metrics:
        _check_kind(config, metric)
    for number, (update, accumulators, kind) in enumerate(_WALKS):
        if not isinstance(metrics[0], kind):
            continue
        shown = _shown(config, seed=len(_WALKS) - 1 - number)
        start = 0
        for part, size in enumerate(sizes):
            getattr(metrics[part % processes], update)(shown(slice(start, start + size)))
            start += size
        for first, *others in zip(*(getattr(m, accumulators)() for m in metrics), strict=True):
            for other in others:
                first.merge(pickle.loads(pickle.dumps(other)))
                vars(other).update(vars(pickle.loads(pickle.dumps(first))))
    found = metrics[0].compute()
    assert isinstance(found, Measured), "compute() gives no Measured"
    return found


def _check_kind(config: MetricConfig, metric: object) -> None:
    """That a metric has the methods for what its config says that it needs."""
    assert isinstance(metric, Metric), f"{type(metric).__name__} does not fit Metric"
    samples, trained = "samples" in config.needs, isinstance(metric, TrainedMetric)
    assert trained == ("training" in config.needs) or (samples and trained), (
        'a metric has "training" among its needs just where it has update_training and '
        "training_accumulators; one of samples may have these without"
    )
    assert isinstance(metric, ComparedMetric) == ("real" in config.needs), (
        'a metric has "real" among its needs just where it has update_real and real_accumulators'
    )
    assert samples or "real" not in config.needs, 'a metric that needs "real" needs "samples" too'


def _shown(config: MetricConfig, *, seed: int) -> Callable[[slice], Seen]:
    """What a metric is shown: some of the images of a seed."""
    images, labels = _images(seed)
    if "clips" in config.needs:
        images = _clips(images)
    positions = torch.arange(IMAGES)
    if "samples" in config.needs:
        return lambda part: Seen(images[part], labels=labels[part], positions=positions[part])
    model, replica = _tokenizer()
    return lambda part: Examination(
        model, images[part], labels=labels[part], positions=positions[part], replica=replica
    )


def _tokenizer() -> tuple[RPiAE, PivotReplica]:
    model = build(encoder=ENCODER, bridge="vb4", decoder=DECODER, seed=1).eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a decoder as initialised makes nearly the same picture of everything
        for parameter in model.roles["decoder"].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    pivot = build(encoder=ENCODER, bridge="vb4", decoder=DECODER, seed=2).roles["encoder"]
    return model, PivotReplica(pivot, output_patch=model.decoder.patch)


def _images(seed: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] of several classes, of which each has a colour, and their labels."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(IMAGES) % CLASSES
    colours = torch.eye(CLASSES)[labels].view(IMAGES, 3, 1, 1)
    images = 0.4 * colours + 0.6 * torch.rand(IMAGES, 3, 32, 32, generator=draws)
    return (images * 255).round() / 255, labels


def _clips(images: Tensor) -> Tensor:
    """Clips of images whose upper half moves to the right, by one pixel a frame, and whose lower half
    stands still."""
    upper, lower = images.chunk(2, dim=-2)
    frames = [torch.cat([upper.roll(t, dims=-1), lower], dim=-2) for t in range(FRAMES)]
    return torch.stack(frames, dim=2)

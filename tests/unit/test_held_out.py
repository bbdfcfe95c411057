"""What a run measures on its held-out images: the numbers of ``rpiae eval``, in any number of processes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rpiae.core.config.parts import DatasetConfig, EncoderConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import HeldOut
from rpiae.core.model.geometry import to_8_bits
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.engine import Examiner, alone, measure
from rpiae.evaluation.evaluating import evaluate
from rpiae.evaluation.examination import Examination
from rpiae.evaluation.held_out import METRICS, HeldOutEvaluation, held_out_metrics
from rpiae.evaluation.images import held_out_pictures
from rpiae.evaluation.panel import Panel, built, metric_configs, numbers
from rpiae.evaluation.subjects import Subject
from rpiae.evaluation.walk import Walk
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.testing.metrics import _tokenizer
from tests.short_run import FORKS, quietly

#: Three photographs, of which one is of four tiles and one of two.
GROUPS = ("one", *("two",) * 4, *("three",) * 2)
COLUMNS = {"one": 1, "two": 2, "three": 1}


def photographs(side: int = 32) -> HeldOut:
    draws = torch.Generator().manual_seed(0)
    images = (torch.rand(len(GROUPS), 3, side, side, generator=draws) * 255).round() / 255
    return HeldOut(images, GROUPS, COLUMNS)


def measured(held_out: HeldOut, *metrics: str, use_bridge: bool = True) -> dict[str, float]:
    model, replica = _tokenizer()
    runtime = Runtime(device="cpu", precision="fp32")
    return HeldOutEvaluation(held_out, metrics, replica, runtime)(model, use_bridge=use_bridge)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    model, replica = _tokenizer()
    return Subject(model=model, folder=tmp_path, replica=replica)


def test_numbers_are_those_of_an_evaluation(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = photographs().images
    names = tuple(f"{i}" for i in range(len(images)))
    apart = HeldOut(images, names, dict.fromkeys(names, 1))
    held_out = held_out_pictures(apart)
    monkeypatch.setattr("rpiae.evaluation.evaluating.measured_images", lambda *_: held_out)
    config = EvaluationConfig(metrics=METRICS)
    runtime = Runtime(device="cpu", precision="fp32")
    expected = evaluate(subject, config, runtime=runtime).metrics
    assert measured(apart, *METRICS) == expected
    assert {"psnr", "ssim", "drift", "dead_channels"} <= expected.keys()


def test_a_photograph_is_put_together_of_its_tiles() -> None:
    model, _ = _tokenizer()
    held_out = photographs()
    with torch.no_grad():
        made = (model.reconstruct(held_out.images) * 255).round() / 255
    errors = (made.double() - held_out.images.double()).square().flatten(1).mean(1)
    parts = [errors[:1].mean(), errors[1:5].mean(), errors[5:].mean()]
    found = measured(held_out, "psnr", "ssim")
    expected = sum(-10 * error.log10().item() for error in parts) / 3
    assert found["psnr"] == pytest.approx(expected, rel=1e-12)
    alone = measured(
        HeldOut(held_out.images, tuple("abcdefg"), dict.fromkeys("abcdefg", 1)), "ssim"
    )
    assert found["ssim"] != pytest.approx(alone["ssim"], abs=1e-5), "windows reach over seams"


def test_without_the_bridge_nothing_is_said_of_a_latent() -> None:
    model, _ = _tokenizer()
    held_out = photographs()
    found = measured(held_out, *METRICS, use_bridge=False)
    assert {"psnr", "ssim", "drift", "cka"} <= found.keys()
    assert not {"dead_channels", "latent_std"} & found.keys()
    assert found["drift"] == measured(held_out, "drift")["drift"]
    with torch.no_grad():
        features = model.features(held_out.images)
        made = (model.decode_features(features, size=(32, 32)).clamp(0, 1) * 255).round() / 255
    through, past = measured(held_out, "psnr"), found
    error = (made.double() - held_out.images.double()).square()
    weights = torch.tensor([1.0, *[1 / 4] * 4, *[1 / 2] * 2]).double() / 3
    pooled = -10 * (error.flatten(1).mean(1) * weights).sum().log10().item()
    assert past["psnr_pooled"] == pytest.approx(pooled, rel=1e-12)
    assert past["psnr"] != pytest.approx(through["psnr"], abs=1e-3)


def test_a_metric_that_cannot_be_measured_is_left_out_and_told() -> None:
    model, replica = _tokenizer()
    runtime = Runtime(device="cpu", precision="fp32")
    images = photographs(8).images[:2]
    held_out = HeldOut(images, ("a", "b"), {"a": 1, "b": 1})
    evaluation = HeldOutEvaluation(held_out, ("psnr", "ssim"), replica, runtime)
    assert evaluation(model).keys() == {"psnr", "psnr_pooled"}
    [text] = evaluation.warnings
    assert text.startswith("ssim was not measured: ")


def test_numbers_of_a_broken_model_are_not_finite() -> None:
    model, replica = _tokenizer()
    with torch.no_grad():
        next(iter(model.decoder.parameters())).fill_(torch.nan)
    runtime = Runtime(device="cpu", precision="fp32")
    found = HeldOutEvaluation(photographs(), ("psnr", "drift"), replica, runtime)(model)
    assert found["psnr"] != found["psnr"], "NaN: a run goes on, and this is not its best"
    assert found["drift"] > 0


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("psnr", "probe"), "'probe' needs images to learn from, .* with rpiae eval"),
        (("psnr", "psnr"), "named twice"),
        (("pnsr",), "Did you mean 'psnr'"),
        (("psnr:3",), "takes no argument"),
    ],
)
def test_what_a_run_cannot_measure_is_refused(metrics: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        held_out_metrics(metrics)


def test_dead_channels_are_counted() -> None:
    model, replica = _tokenizer()
    runtime = Runtime(device="cpu", precision="fp32")
    evaluation = HeldOutEvaluation(photographs(), ("latents",), replica, runtime)
    assert evaluation(model)["dead_channels"] == 0
    with torch.no_grad():
        model.bridge.encoder.moments.weight[[1, 3]] = 0  # type: ignore[attr-defined]
    found = evaluation(model)
    assert (found["dead_channels"], found["active_channels"]) == (2, 2)


def test_the_distance_in_the_pivot_does_not_prefer_blur() -> None:
    """Half the detail gone has the better PSNR than detail of which some is wrong."""
    pivot = part_config("encoders", "tiny")
    assert isinstance(pivot, EncoderConfig)
    encoder = pivot.build()
    pivot.load_pretrained(encoder)
    replica = PivotReplica(encoder, output_patch=pivot.describe().output_patch)
    data = part_config("datasets", {"name": "sample", "image_size": 64})
    assert isinstance(data, DatasetConfig)
    images = data.build().held_out().images[::4]
    low = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="bilinear")
    draws = torch.Generator().manual_seed(0)
    turned = torch.where(torch.rand(len(images), 1, 16, 16, generator=draws) < 0.25, -1.0, 1.0)
    texture = low + (images - low) * F.interpolate(turned, scale_factor=4)
    found = {}
    for name, made in (("exact", images), ("blur", (low + images) / 2), ("texture", texture)):
        seen = Examination(
            _tokenizer()[0], images, labels=torch.zeros(len(images)),
            positions=torch.arange(len(images)), replica=replica,
        )  # fmt: skip
        vars(seen)["reconstruction"] = to_8_bits(made)
        metrics = dict(built(metric_configs(("psnr", "pivot-rfd"))))
        for metric in metrics.values():
            metric.update(seen)
        found[name] = numbers({k: metric.compute() for k, metric in metrics.items()})
    assert found["exact"]["pivot_rfd"] == pytest.approx(0, abs=1e-4)
    assert found["blur"]["psnr"] > found["texture"]["psnr"] + 2
    assert found["blur"]["pivot_rfd"] > found["texture"]["pivot_rfd"]


def test_no_batch_waits_for_the_result_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a value makes an accelerator's queue run empty: it is done when a walk has ended."""
    model, replica = _tokenizer()
    model._watches_range = False  # as after the first batch on an accelerator
    runtime = Runtime(device="cpu", precision="fp32")
    panel = Panel(dict(built(metric_configs((*METRICS, "rfd:tiny", "pivot-rfd")))), runtime)
    walk = Walk(
        held_out_pictures(photographs()),
        batch_size=4, runtime=runtime, recognised=False,
    )  # fmt: skip
    examiner = Examiner(model=model, runtime=runtime, replica=replica)
    update = panel.update

    def watched(seen: Any) -> None:
        with pytest.MonkeyPatch.context() as patched:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
                patched.setattr(torch.Tensor, name, lambda *_, n=name: pytest.fail(f"{n} waits"))
            update(seen)

    monkeypatch.setattr(panel, "update", watched)
    measure(panel, examiner, walk)
    assert panel.failures() == []
    assert len(panel.compute()) == len(METRICS) + 2


def one_of(rank: int, port: int, out: Path, log: Path) -> None:
    """One process of two, each with its share of the photographs."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    quietly(log, _measure_and_write, out / f"{rank}.json")


def _measure_and_write(path: Path) -> None:
    model, replica = _tokenizer()
    runtime = Runtime(device="cpu", precision="fp32")
    assert runtime.num_processes == 2
    found = {}
    names = (*METRICS, "rfd:tiny", "pivot-rfd")
    for use_bridge in (True, False):
        evaluation = HeldOutEvaluation(photographs(), names, replica, runtime)
        found[str(use_bridge)] = evaluation(model, use_bridge=use_bridge)
    few = HeldOut(photographs().images[:1], ("one",), {"one": 1})
    found["few"] = HeldOutEvaluation(few, ("psnr",), replica, runtime)(model)
    single = HeldOutEvaluation(photographs(), names, replica, alone(runtime))
    found["alone"] = single(model)
    path.write_text(json.dumps(found))
    runtime.close()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_two_processes_measure_as_one(tmp_path: Path, port: int) -> None:
    log = tmp_path / "log"
    both = [
        FORKS.Process(target=one_of, args=(rank, port, tmp_path, log), daemon=True)
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=240)
        assert process.exitcode == 0, log.read_text()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second, "every process has all numbers"
    names = (*METRICS, "rfd:tiny", "pivot-rfd")
    for use_bridge in (True, False):
        expected = measured(photographs(), *names, use_bridge=use_bridge)
        assert first[str(use_bridge)] == pytest.approx(expected, rel=1e-6)
    assert first["alone"] == pytest.approx(measured(photographs(), *names), rel=1e-6)
    assert first["few"].keys() == {"psnr", "psnr_pooled"}, "one photograph for two processes"

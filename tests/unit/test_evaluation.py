"""Measuring a saved tokenizer: its numbers, what they depend on, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

import rpiae
from rpiae import runs
from rpiae.core.config.parts import MetricConfig
from rpiae.core.config.tree import dump_toml
from rpiae.core.errors import CheckpointError, FetchError, RpiaeError, RunError, UsageError
from rpiae.core.model.contracts import Features, HeldOut
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.geometry import Rounding, to_8_bits
from rpiae.core.model.resolve import part_config
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.data.fingerprint import data_fingerprint
from rpiae.data.orders import sampled
from rpiae.evaluation import distances, evaluating, references
from rpiae.evaluation.accumulators import Rows, merge
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.encoders import probe_encoder
from rpiae.evaluation.evaluating import Evaluation, evaluate
from rpiae.evaluation.examination import Examination, pooled_latent
from rpiae.evaluation.held_out import HeldOutEvaluation
from rpiae.evaluation.pixels import psnr_of
from rpiae.evaluation.protocol import EVALUATION_FILE, check_comparable, number_protocol
from rpiae.evaluation.saved import check_evaluation, evaluate_saved
from rpiae.evaluation.semantics import turned
from rpiae.evaluation.subjects import evaluation_address, is_evaluated, open_subject
from rpiae.losses.configs import LpipsLossConfig
from rpiae.tasks.tokenizer.pivot import write_pivot
from tests.toys import DECODERS, ENCODERS
from tests.unit.test_lpips import random_state

#: Images per class in each of the two sets.
COUNT = 9
SPACE = "tiny"


def write_classes(folder: Path, *, seed: int) -> Path:
    """Pictures of three classes that differ in colour and direction; one file is damaged."""
    draws = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 32)
    for name, pattern in (
        ("across", np.broadcast_to(ramp, (32, 32))),
        ("down", np.broadcast_to(ramp[:, None], (32, 32))),
        ("plain", np.full((32, 32), 90.0)),
    ):
        (folder / name).mkdir(parents=True)
        for i in range(COUNT):
            pixels = pattern[..., None] * draws.uniform(0.8, 1, 3) + draws.normal(0, 8, (32, 32, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{i}.png")
    (folder / "across" / "3.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def testing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("testing") / "images", seed=1)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("training") / "images", seed=2)


@pytest.fixture(scope="module")
def model() -> RPiAE:
    """An untrained tokenizer whose pictures are not all alike."""
    made = rpiae.build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"])
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.decoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws)
    return made.eval()


@pytest.fixture
def run(tmp_path: Path, model: RPiAE, training: Path) -> Path:
    """A finished run's folder, as far as an evaluation looks at it."""
    folder = tmp_path / "run"
    save_tokenizer(model, folder / "tokenizer")
    pivot = rpiae.build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"], seed=5)
    write_pivot(folder, pivot.roles["encoder"])
    tree = {
        "encoder": ENCODERS["vit"] | {"pretrained": True}, "bridge": "vb4",
        "decoder": DECODERS["vit"], "data": {"name": "folder", "path": str(training), "workers": 0, "held_out": 4},
        "recipe": "quick",
    }  # fmt: skip
    (folder / "config.toml").write_text(dump_toml(runs.resolve(tree).config))
    return folder


def measure(run: Path, testing: Path, *metrics: Any, **options: Any) -> Evaluation:
    runtime = Runtime(device="cpu", precision=options.get("precision", "fp32"))
    config = EvaluationConfig(data=f"folder:{testing}", metrics=metrics, **options)
    return evaluate(open_subject(run, runtime.device), config, runtime=runtime)


def images_of(folder: Path) -> torch.Tensor:
    found = []
    for path in sorted(folder.rglob("*.png")):
        if path.stat().st_size > 100:
            found.append(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255)
    return torch.stack(found)


def test_psnr_and_ssim_agree_with_torchmetrics(run: Path, testing: Path, model: RPiAE) -> None:
    found = measure(run, testing, "psnr", "ssim", batch_size=4)
    images = images_of(testing)
    with torch.no_grad():
        made = (model.reconstruct(images) * 255).round() / 255
    pooled = PeakSignalNoiseRatio(data_range=1.0)(made, images)
    each = [PeakSignalNoiseRatio(data_range=1.0)(m, i) for m, i in zip(made, images, strict=True)]
    ssim = StructuralSimilarityIndexMeasure(data_range=1.0)(made, images)
    assert found.metrics["psnr_pooled"] == pytest.approx(pooled.item(), abs=1e-4)
    assert found.metrics["psnr"] == pytest.approx(torch.stack(each).mean().item(), abs=1e-4)
    assert found.metrics["psnr"] != pytest.approx(found.metrics["psnr_pooled"], abs=1e-3)
    assert found.metrics["ssim"] == pytest.approx(ssim.item(), abs=1e-5)


def test_what_the_source_leaves_out_is_a_warning(run: Path, testing: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(testing, tmp_path / "copy")
    (folder / "x.heic").write_bytes(b"x")
    assert any("left out .heic (1)" in text for text in measure(run, folder, "psnr").warnings)


EVERYTHING = (
    "psnr", "ssim", f"rfd:{SPACE}", f"ifd:{SPACE}", "probe", "rotation", "drift", "latents",
)  # fmt: skip


def test_numbers_do_not_depend_on_batches(run: Path, testing: Path, training: Path) -> None:
    options = {"training": f"folder:{training}"}
    one = measure(run, testing, *EVERYTHING, batch_size=1, **options)
    other = measure(run, testing, *EVERYTHING, batch_size=11, **options)
    assert one.metrics.keys() == other.metrics.keys()
    assert len(one.metrics) > 20
    for name, value in one.metrics.items():
        assert other.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-9), name
    assert one.protocol == other.protocol
    assert one.protocol["count"] == 3 * COUNT - 1
    assert len(one.skipped) == 2
    assert all("3.png" in text for text in one.skipped)


def test_interpolating_not_at_all_is_reconstruction(
    run: Path, testing: Path, training: Path
) -> None:
    still = {"name": "ifd", "space": SPACE, "weight": 0.0}
    half = {"name": "ifd", "space": SPACE, "weight": 0.5}
    found = measure(run, testing, f"rfd:{SPACE}", still, training=f"folder:{training}")
    rfd, ifd = found.metrics[f"rfd[{SPACE}]"], found.metrics[f"ifd[{SPACE}]"]
    assert ifd == pytest.approx(rfd, rel=1e-9)
    moved = measure(run, testing, half, training=f"folder:{training}").metrics[f"ifd[{SPACE}]"]
    assert moved != pytest.approx(rfd, rel=1e-6)


def test_a_set_is_no_distance_from_itself(run: Path, testing: Path) -> None:
    subject = open_subject(run, torch.device("cpu"))
    metric = rpiae.METRICS.config_class("rfd")(name="rfd", space=SPACE).build()
    images = images_of(testing)
    seen = Examination(
        subject.model, images, labels=torch.zeros(len(images)), positions=torch.arange(len(images))
    )
    vars(seen)["reconstruction"] = images
    metric.update(seen)
    found = metric.compute()
    assert found.values[f"rfd[{SPACE}]"] <= 1e-6 * metric.originals.trace
    assert metric.originals.trace > 1
    assert any("samples" in text for text in found.warnings), "26 samples, 192 dimensions"


def test_probes_find_classes_and_say_what_was_kept(
    run: Path, testing: Path, training: Path
) -> None:
    found = measure(run, testing, "probe", training=f"folder:{training}").metrics
    assert found["probe_pivot"] > 0.8
    assert found["probe_retention"] == pytest.approx(found["probe"] / found["probe_pivot"])
    assert {"probe_latent", "knn", "knn_pivot", "knn_latent", "knn_retention"} <= found.keys()


def test_turns_depend_on_positions_alone() -> None:
    images = torch.rand(12, 3, 8, 8)
    positions = torch.arange(100, 112)
    made, turns = turned(images, positions, seed=0)
    assert set(turns.tolist()) == {0, 1, 2, 3}
    for image, before, turn in zip(made, images, turns.tolist(), strict=True):
        assert image.equal(before.rot90(turn, (-2, -1)))
    again, same = turned(images[5:], positions[5:], seed=0)
    assert same.equal(turns[5:])
    assert again.equal(made[5:])
    assert not turned(images, positions, seed=1)[1].equal(turns)


def test_drift_of_the_pivot_itself_is_nothing(run: Path, testing: Path, model: RPiAE) -> None:
    drifted = measure(run, testing, "drift").metrics
    assert drifted["drift"] > 0.1
    (run / "pivot.safetensors").unlink()
    write_pivot(run, model.roles["encoder"])
    still = measure(run, testing, "drift").metrics
    assert still["drift"] == pytest.approx(0, abs=1e-6)
    assert still["drift_relative"] == pytest.approx(0, abs=1e-6)
    assert still["cka"] == pytest.approx(1, abs=1e-6)


def test_latents_are_described(run: Path, testing: Path) -> None:
    found = measure(run, testing, "latents")
    assert found.metrics["compression_values"] == 3 * 32 * 32 / (4 * 8 * 8)
    assert found.metrics["compression_bits"] == found.metrics["compression_values"] / 2
    assert 1 <= found.metrics["effective_rank"] <= 4
    assert found.metrics["kl"] >= 0
    assert len(found.details["latents"]["std"]) == 4


def test_truncated_images_are_other_images(run: Path, testing: Path, model: RPiAE) -> None:
    near = measure(run, testing, "psnr")
    below = measure(run, testing, "psnr", round="truncate")
    images = images_of(testing)
    with torch.no_grad():
        made = (model.reconstruct(images).clamp(0, 1) * 255).to(torch.uint8) / 255
    wanted = PeakSignalNoiseRatio(data_range=1.0)(made, images).item()
    assert below.metrics["psnr_pooled"] == pytest.approx(wanted, abs=1e-4)
    assert near.metrics["psnr_pooled"] != pytest.approx(wanted, abs=1e-3)
    assert (near.protocol["round"], below.protocol["round"]) == ("nearest", "truncate")
    protocols = {n: number_protocol(e.protocol, "psnr") for n, e in (("a", near), ("b", below))}
    with pytest.raises(UsageError, match="round: nearest and truncate"):
        check_comparable("psnr", protocols)


def test_truncation_costs_what_it_costs_at_forty_decibels() -> None:
    """Half a level of bias more than rounding: 0.16 dB of the reference's at 40 dB."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 256, 256), generator=draws) / 255
    made = images + 0.01 * torch.randn(images.shape, generator=draws)
    inside = (images > 0.1) & (images < 0.9)

    def psnr(rounding: Rounding) -> float:
        error = (to_8_bits(made, rounding=rounding) - images)[inside].double().square().mean()
        return psnr_of(error).item()

    assert psnr("nearest") == pytest.approx(40, abs=0.1)
    assert psnr("nearest") - psnr("truncate") == pytest.approx(0.16, abs=0.02)


def test_the_protocol_says_what_was_computed_in(run: Path, testing: Path) -> None:
    half = measure(run, testing, "psnr", "drift", precision="bf16")
    full = measure(run, testing, "psnr", "drift")
    assert (half.protocol["precision"], full.protocol["precision"]) == ("bf16", "fp32")
    assert half.metrics["psnr"] != full.metrics["psnr"]
    assert half.metrics["psnr"] == pytest.approx(full.metrics["psnr"], abs=0.1)
    auto = measure(run, testing, "psnr", precision="auto")
    assert auto.protocol["precision"] in ("bf16", "fp32")
    protocols = {n: number_protocol(e.protocol, "psnr") for n, e in (("a", half), ("b", full))}
    with pytest.raises(UsageError, match="precision: bf16 and fp32"):
        check_comparable("psnr", protocols)


def test_feature_spaces_are_in_fp32_whatever_the_tokenizer_is_in(
    run: Path, testing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pictures have the same features; only the pictures differ."""
    seen: list[tuple[torch.dtype, bool]] = []
    update = distances.FeatureMoments.add

    def add(self: Any, features: torch.Tensor) -> None:
        seen.append((features.dtype, torch.is_autocast_enabled("cpu")))
        update(self, features)

    monkeypatch.setattr(distances.FeatureMoments, "add", add)
    images = {}
    for precision in ("fp32", "bf16"):
        metric = rpiae.METRICS.config_class("rfd")(name="rfd", space=SPACE).build()
        config = EvaluationConfig(data=f"folder:{testing}", metrics=("psnr",))
        runtime = Runtime(device="cpu", precision=precision)
        monkeypatch.setattr(evaluating, "built", lambda _, m=metric: [("psnr", m)])
        evaluate(open_subject(run, runtime.device), config, runtime=runtime)
        images[precision] = metric.originals
    assert set(seen) == {(torch.float32, False)}
    assert images["fp32"].mean.equal(images["bf16"].mean)
    assert images["fp32"].scatter.equal(images["bf16"].scatter)


@pytest.mark.parametrize("side", [1, 4, 5, 6, 10, 11])
def test_images_too_small_for_a_metric_have_the_others(run: Path, testing: Path, side: int) -> None:
    found = measure(run, testing, "psnr", "ssim", "latents", image_size=side)
    assert {"psnr", "psnr_pooled", "compression_bits"} <= found.metrics.keys()
    assert ("ssim" in found.metrics) == (side >= 11)
    said = [text for text in found.warnings if text.startswith("ssim was not measured")]
    assert len(said) == (side < 11)
    assert all(f"{side}×{side} pixels are smaller than 11×11" in text for text in said)


@attrs.frozen
class Replay:
    """A tokenizer that gives the images themselves, a little darker, and nothing else."""

    by: float = 0.0

    def posterior(self, features: Features) -> Any:
        return self

    def features(self, images: torch.Tensor) -> Features:
        return Features(images.flatten(2).movedim(1, -1), (1, *images.shape[-2:]))

    def decode_features(self, features: Features, *, size: tuple[int, int]) -> torch.Tensor:
        return features.tokens.movedim(-1, 1).unflatten(-1, size) - self.by

    def geometry(self, *size: int) -> Any:
        return SimpleNamespace(grid=(1, *size))


def held_out_numbers(
    images: torch.Tensor, groups: str, columns: dict[str, int]
) -> dict[str, float]:
    runtime = Runtime(device="cpu", precision="fp32")
    held_out = HeldOut(images, tuple(groups), columns)
    measured = HeldOutEvaluation(held_out, ("psnr", "ssim"), Replay(), runtime)  # type: ignore[arg-type]
    return measured(Replay(), use_bridge=False)  # type: ignore[arg-type]


def test_tiny_photographs_of_a_run_have_a_psnr() -> None:
    images = to_8_bits(torch.rand(5, 3, 8, 8))
    tiny = held_out_numbers(images[:2], "ab", {"a": 1, "b": 1})
    assert tiny == {"psnr": 100.0, "psnr_pooled": 100.0}
    tiled = held_out_numbers(images, "abbbb", {"a": 1, "b": 2})
    assert tiled["ssim"] == pytest.approx(1), "four tiles make a photograph of 16 pixels"


def test_one_image_has_all_numbers_that_one_can_have(
    run: Path, testing: Path, training: Path
) -> None:
    names = ("psnr", "ssim", "drift", "latents", f"rfd:{SPACE}", f"ifd:{SPACE}")
    found = measure(run, testing, *names, training=f"folder:{training}", num_images=1)
    assert found.protocol["count"] == 1
    assert {"psnr", "ssim", "drift", "effective_rank"} <= found.metrics.keys()
    assert not {f"rfd[{SPACE}]", f"ifd[{SPACE}]"} & found.metrics.keys()
    for name in (f"rfd:{SPACE}", f"ifd:{SPACE}"):
        assert any(
            text.startswith(f"{name} was not measured: a covariance needs at least 2")
            for text in found.warnings
        )
    with pytest.raises(RunError, match=r"nothing was measured: rfd:tiny was not measured"):
        measure(run, testing, f"rfd:{SPACE}", num_images=1)


@pytest.mark.parametrize("name", ["psnr", "drift", "latents", f"rfd:{SPACE}"])
def test_a_process_may_see_no_usable_image(run: Path, testing: Path, name: str) -> None:
    subject = open_subject(run, torch.device("cpu"))
    images = images_of(testing)[:4]
    seen = Examination(
        subject.model, images, labels=torch.zeros(4), positions=torch.arange(4),
        replica=subject.replica,
    )  # fmt: skip
    config = part_config("metrics", name)
    assert isinstance(config, MetricConfig)
    alone, none, some = (config.build() for _ in range(3))
    alone.update(seen)
    some.update(seen)

    class Processes:
        """Two of them, of which the first one saw nothing."""

        num_processes = 2

        def gather(self, value: Any) -> list[Any]:
            return [value, list(some.accumulators())]

    merge(none.accumulators(), Processes())  # type: ignore[arg-type]
    assert none.compute().values == pytest.approx(alone.compute().values)


def test_all_that_metrics_lack_is_named_before_anything_is_opened(tmp_path: Path) -> None:
    names = ("lpips:none.pth", "rfid:no.pth", "rfd:cnn:not.safetensors", "psnr")
    with pytest.raises(FetchError, match=r"3 files: .*none\.pth.*no\.pth.*not\.safetensors"):
        evaluate_saved(tmp_path / "nowhere", EvaluationConfig(metrics=names))
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        evaluate_saved(tmp_path / "nowhere", EvaluationConfig(metrics=("lpips:none.pth",)))


def test_what_is_missing_is_said(run: Path, testing: Path, training: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for i, path in enumerate(sorted(testing.rglob("*.png"))):
        (plain / f"{i}.png").write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"probe needs labels, and .*plain has none"):
        measure(run, plain, "probe", training=f"folder:{training}")
    with pytest.raises(UsageError, match="name them, apart from those"):
        measure(run, testing, f"ifd:{SPACE}")
    with pytest.raises(UsageError, match="both what is learned from and what is measured on"):
        measure(run, testing, "probe", training=f"folder:{testing}")
    with pytest.raises(UsageError, match=r"metric 'psnr' is named twice"):
        measure(run, testing, "psnr", "psnr")
    with pytest.raises(UsageError, match=r"no metric named 'pnsr'.*'psnr'"):
        measure(run, testing, "pnsr")
    with pytest.raises(UsageError, match="between 0 and 1"):
        measure(run, testing, {"name": "ifd", "weight": 1.5}, training=f"folder:{training}")
    (run / "config.toml").unlink()
    with pytest.raises(UsageError, match=r"drift cannot be measured.*no run around it"):
        measure(run / "tokenizer", testing, "drift")
    runtime = Runtime(device="cpu", precision="fp32")
    subject = open_subject(run / "tokenizer", runtime.device)
    with pytest.raises(UsageError, match="no run that knows its data"):
        evaluate(subject, EvaluationConfig(metrics=("psnr",)), runtime=runtime)


def test_a_run_is_measured_on_its_own_held_out_images(run: Path) -> None:
    runtime = Runtime(device="cpu", precision="fp32")
    config = EvaluationConfig(metrics=("psnr", f"ifd:{SPACE}"), num_training=8)
    found = evaluate(open_subject(run, runtime.device), config, runtime=runtime)
    assert found.protocol["count"] == 4
    assert found.protocol["training"]["count"] == 8


def test_a_broken_tokenizer_is_no_zero(run: Path, testing: Path, model: RPiAE) -> None:
    runtime = Runtime(device="cpu", precision="fp32")
    subject = open_subject(run, runtime.device)
    with torch.no_grad():
        next(iter(subject.model.roles["encoder"].parameters())).fill_(torch.nan)
    config = EvaluationConfig(data=f"folder:{testing}", metrics=("latents",))
    with pytest.raises(RunError, match="not finite"):
        evaluate(subject, config, runtime=runtime)


def test_an_evaluation_is_known_by_all_it_depends_on(run: Path, testing: Path) -> None:
    config = EvaluationConfig(data=f"folder:{testing}", metrics=("psnr",), num_images=4)
    assert not is_evaluated(run, config)
    evaluate_saved(run, config)
    assert is_evaluated(run, config)
    assert not is_evaluated(run, EvaluationConfig(data=f"folder:{testing}", metrics=("ssim",)))
    for name in ("held-out", "originals", "similarity"):
        with Image.open(run / "pictures" / f"{name}.png") as picture:
            assert picture.width >= 32
    tree = json.loads((run / EVALUATION_FILE).read_text())
    assert tree["metrics"]["psnr"] > 0
    model = load_tokenizer(run)
    with torch.no_grad():
        next(iter(model.decoder.parameters())).add_(1)
    save_tokenizer(model, run / "tokenizer")
    assert not is_evaluated(run, config)


class TestReferences:
    """Fréchet statistics in files."""

    def written(self, run: Path, testing: Path, out: Path, **options: Any) -> Path:
        config = EvaluationConfig(data=f"folder:{testing}", metrics=(f"rfd:{SPACE}",), **options)
        evaluate_saved(run, config, reference_out=out)
        return out

    def test_gives_the_same_distance(self, run: Path, testing: Path, tmp_path: Path) -> None:
        file = self.written(run, testing, tmp_path / "originals.safetensors")
        direct = measure(run, testing, f"rfd:{SPACE}")
        table = {"name": "rfd", "space": SPACE, "reference": str(file)}
        through = measure(run, testing, table)
        name = f"rfd[{SPACE}]"
        assert through.metrics[name] == pytest.approx(direct.metrics[name], rel=1e-12)
        assert through.protocol["metrics"][name]["reference"]["purpose"] == "reconstruction"

    def test_of_other_images_is_refused(
        self, run: Path, testing: Path, training: Path, tmp_path: Path
    ) -> None:
        file = self.written(run, training, tmp_path / "originals.safetensors")
        table = {"name": "rfd", "space": SPACE, "reference": str(file)}
        with pytest.raises(UsageError, match=r"of other images.*images_sha256 is .* there"):
            measure(run, testing, table)

    def test_of_another_crop_is_told_before_anything_is_measured(
        self, run: Path, testing: Path, tmp_path: Path
    ) -> None:
        file = self.written(run, testing, tmp_path / "originals.safetensors", crop="centre")
        table = {"name": "rfd", "space": SPACE, "reference": str(file)}
        with pytest.raises(UsageError, match=r"crop is short side above 48 .* there and ADM: "):
            measure(run, testing, table)
        assert measure(run, testing, table, crop="centre").metrics

    def test_of_other_images_costs_no_other_number(
        self, run: Path, testing: Path, training: Path, tmp_path: Path
    ) -> None:
        file = self.written(run, training, tmp_path / "originals.safetensors")
        table = {"name": "rfd", "space": SPACE, "reference": str(file)}
        found = measure(run, testing, table, "psnr")
        assert found.metrics.keys() == {"psnr", "psnr_pooled"}
        assert any("a reference of other images" in text for text in found.warnings)

    def test_that_is_damaged_is_refused(self, run: Path, testing: Path, tmp_path: Path) -> None:
        file = self.written(run, testing, tmp_path / "originals.safetensors")
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="its statistics are not those"):
            references.read_reference(file)
        bare = {"format": references.FORMAT, "purpose": "reconstruction", "count": "3"}
        metadata = {"rpiae": json.dumps(bare)}
        save_file({"mean": np.zeros(4), "scatter": np.eye(4)}, file, metadata=metadata)
        with pytest.raises(CheckpointError, match="does not say images_sha256, count, crop"):
            references.read_reference(file)

    def test_that_cannot_be_written_costs_no_number(
        self, run: Path, testing: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "originals.safetensors"
        out.mkdir()
        config = EvaluationConfig(data=f"folder:{testing}", metrics=(f"rfd:{SPACE}",))
        found = evaluate_saved(run, config, reference_out=out)
        assert found.metrics[f"rfd[{SPACE}]"] > 0
        assert len(found.unwritten) == 1
        assert "originals.safetensors" in found.unwritten[0]

    def test_of_another_space_is_refused(self, run: Path, testing: Path, tmp_path: Path) -> None:
        file = self.written(run, testing, tmp_path / "originals.safetensors")
        read = references.read_reference(file)
        other = {**read.protocol["extractor"], "weights_sha256": "0"}
        with pytest.raises(UsageError, match=r"another feature space.*weights_sha256"):
            read.check_space(other)

    def test_for_generation_is_refused(self, run: Path, testing: Path, tmp_path: Path) -> None:
        file = self.written(run, testing, tmp_path / "originals.safetensors")
        read = references.read_reference(file)
        other = tmp_path / "generation.safetensors"
        protocol = {**read.protocol, "purpose": "generation"}
        references.write_reference(other, read.moments, protocol)
        with pytest.raises(UsageError, match=r"a reference for generation.*own originals"):
            measure(run, testing, {"name": "rfd", "space": SPACE, "reference": str(other)})

    def test_without_a_protocol_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "VIRTUAL_imagenet256.npz"
        np.savez(file, mu=np.zeros(4), sigma=np.eye(4))
        with pytest.raises(UsageError, match="without a protocol"):
            references.read_reference(file)
        plain = tmp_path / "plain.safetensors"
        save_file({"mean": np.zeros(4), "scatter": np.eye(4)}, plain)
        with pytest.raises(UsageError, match="no reference of this version"):
            references.read_reference(plain)
        (tmp_path / "broken.safetensors").write_bytes(b"{")
        with pytest.raises(CheckpointError, match="cannot be read"):
            references.read_reference(tmp_path / "broken.safetensors")
        with pytest.raises(CheckpointError, match="there is no reference"):
            references.read_reference(tmp_path / "none.safetensors")

    def test_numbers_of_different_protocols_are_not_compared(
        self, run: Path, testing: Path
    ) -> None:
        name = f"rfd[{SPACE}]"
        whole = measure(run, testing, f"rfd:{SPACE}").protocol["metrics"][name]
        some = measure(run, testing, f"rfd:{SPACE}", num_images=9).protocol["metrics"][name]
        check_comparable(name, {"a": whole, "b": dict(whole)})
        with pytest.raises(
            UsageError, match=r"rfd\[tiny\] of a and of b cannot be compared.*count"
        ):
            check_comparable(name, {"a": whole, "b": some})


def test_probing_an_encoder_by_name_and_by_run(run: Path, testing: Path, training: Path) -> None:
    runtime = Runtime(device="cpu", precision="fp32")
    sets = {"training": f"folder:{training}", "testing": f"folder:{testing}"}
    pivot = probe_encoder("tiny", **sets, runtime=runtime, rotation=True, k=5)
    assert pivot.linear["classes"].accuracy > 0.9
    assert pivot.linear["classes"].num_classes == 3
    assert pivot.linear["turns"].num_classes == 4
    assert pivot.width == 192
    assert json.loads(json.dumps(pivot.as_tree()))["testing"]["count"] == 3 * COUNT - 1
    tuned = probe_encoder(str(run), **sets, runtime=runtime)
    assert tuned.width == 32
    direct = measure(run, testing, "probe", training=sets["training"]).metrics
    assert tuned.linear["classes"].accuracy == pytest.approx(direct["probe"])
    with pytest.raises(UsageError, match="both what is learned from"):
        probe_encoder("tiny", training="x", testing="x", runtime=runtime)
    with pytest.raises(UsageError, match=r"no encoder named 'tini'.*'tiny'"):
        probe_encoder("tini", **sets, runtime=runtime)


def test_lpips_is_the_losss_own(run: Path, testing: Path, model: RPiAE, tmp_path: Path) -> None:
    file = tmp_path / "vgg16.pth"
    torch.save(random_state("vgg16"), file)
    few = tmp_path / "few"
    few.mkdir()
    for name in ("across", "down"):
        (few / f"{name}.png").write_bytes((testing / name / "0.png").read_bytes())
    found = measure(run, few, f"lpips:{file}")
    loss = LpipsLossConfig(name="lpips", weights=str(file)).build()
    images = images_of(few)
    with torch.no_grad():
        made = (model.reconstruct(images) * 255).round() / 255
        wanted = loss.distance(made, images).mean().item()
    assert found.metrics["lpips"] == pytest.approx(wanted, rel=1e-5)


def test_rfid_is_the_distance_in_inceptions_space(
    run: Path, testing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Space:
        name = "inception"
        dimensions = 3
        facts: ClassVar[dict[str, Any]] = {"extractor": "fake", "weights_sha256": "0"}

        def to(self, device: torch.device) -> Space:
            return self

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((-1, -2))

    def made(text: str) -> Space:
        asked.append(text)
        return Space()

    monkeypatch.setattr(distances, "feature_space", made)
    found = measure(run, testing, "rfid:weights.pth")
    assert asked == ["inception:weights.pth"]
    assert found.metrics["rfid"] > 0
    assert found.protocol["metrics"]["rfid"]["extractor"] == Space.facts


def test_some_images_stand_for_all_of_them() -> None:
    """Also where classes take turns, as in some datasets' files."""
    labels = [i % 10 for i in range(10_000)]
    chosen = sampled(len(labels), 1500)
    assert chosen == sorted(set(chosen)) == sampled(len(labels), 1500)
    assert len(chosen) == 1500
    counts = [sum(labels[i] == label for i in chosen) for label in range(10)]
    assert min(counts) > 100
    assert sampled(3, 5) == [0, 1, 2]


def test_rows_come_in_the_order_of_positions() -> None:
    one, other = Rows(), Rows()
    for rows, positions in ((one, [4, 0]), (other, [5]), (one, [2]), (other, [1, 3])):
        at = torch.tensor(positions)
        rows.add(at, value=at * 10, vector=at[:, None].expand(-1, 2))
    one.merge(other)
    for _ in range(2):
        joined = one.joined()
        assert joined["value"].tolist() == [0, 10, 20, 30, 40, 50]
        assert joined["vector"][:, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert Rows().joined() == {}
    assert pooled_latent(torch.zeros(2, 8, 8, 8), 512).shape == (2, 512)
    assert pooled_latent(torch.zeros(2, 8, 8, 8), 511).shape == (2, 8 * 7 * 7)
    assert pooled_latent(torch.zeros(2, 600, 8, 8), 512).shape == (2, 600)


def test_labels_are_matched_by_name(
    run: Path, testing: Path, training: Path, tmp_path: Path
) -> None:
    """Folders number their classes each for itself."""
    some = tmp_path / "some"
    for name in ("across", "plain"):  # 0 and 1 here, 0 and 2 in the training images
        (some / name).mkdir(parents=True)
        for path in (testing / name).iterdir():
            (some / name / path.name).write_bytes(path.read_bytes())
    sets = {"training": f"folder:{training}"}
    found = measure(run, some, "probe", **sets).metrics
    assert found["probe_pivot"] > 0.8
    by_name = probe_encoder(
        "tiny", **sets, testing=f"folder:{some}", runtime=Runtime(device="cpu", precision="fp32")
    )
    assert by_name.linear["classes"].accuracy > 0.9
    (some / "plain").rename(some / "square")
    with pytest.raises(UsageError, match=r"classes that .* has not, such as 'square'"):
        measure(run, some, "probe", **sets)


def test_what_is_measured_on_is_not_learned_from(
    run: Path, testing: Path, training: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"26 of the 26 images .* are among those"):
        measure(run, testing, "rotation", training=f"folder:{testing}/")
    with pytest.raises(UsageError, match="26 of the 26"):
        probe_encoder(
            "tiny", training=f"folder:{testing}", testing=f"folder:{testing}/",
            runtime=Runtime(device="cpu", precision="fp32"),
        )  # fmt: skip
    # The run's own held-out images lie in the file that it was trained on.
    runtime = Runtime(device="cpu", precision="fp32")
    subject = open_subject(run, runtime.device)
    config = EvaluationConfig(training=f"folder:{training}", metrics=(f"ifd:{SPACE}",))
    with pytest.raises(UsageError, match="4 of the 4"):
        evaluate(subject, config, runtime=runtime)


def test_random_weights_are_no_pivot(run: Path, testing: Path, training: Path) -> None:
    path = run / "config.toml"
    path.write_text(path.read_text().replace("pretrained = true", "pretrained = false", 1))
    found = measure(run, testing, "drift", "probe", "psnr", training=f"folder:{training}")
    assert not {"drift", "probe_pivot", "probe_retention"} & found.metrics.keys()
    assert {"probe", "psnr"} <= found.metrics.keys()
    assert any("drift is left out" in text for text in found.warnings)
    with pytest.raises(UsageError, match=r"drift cannot be measured.*random weights"):
        measure(run, testing, "drift")


def test_one_metric_that_fails_costs_nothing_but_itself(
    run: Path, testing: Path, training: Path
) -> None:
    found = measure(run, testing, "probe", "psnr", training=f"folder:{training}", num_training=2)
    assert found.metrics["psnr"] > 0
    assert "probe" not in found.metrics
    assert any(text.startswith("probe was not measured") for text in found.warnings)


def test_numbers_of_one_name_do_not_hide_each_other(
    run: Path, testing: Path, training: Path
) -> None:
    two = ({"name": "probe", "k": 1}, {"name": "probe", "k": 9})
    found = measure(run, testing, *two, training=f"folder:{training}").metrics
    assert sum(name.startswith("knn") and "latent" not in name for name in found) >= 4


def test_an_evaluation_depends_on_the_images_and_the_files_of_metrics(
    run: Path, training: Path, tmp_path: Path
) -> None:
    images = write_classes(tmp_path / "images", seed=3)
    weights = tmp_path / "vgg.pth"
    weights.write_bytes(b"1")
    config = EvaluationConfig(data=f"folder:{images}", metrics=(f"lpips:{weights}",))

    def address() -> str:
        data_fingerprint.cache_clear()
        return evaluation_address(run, config)

    first = address()
    assert address() == first
    weights.write_bytes(b"2")
    second = address()
    assert second != first
    (images / "plain" / "0.png").unlink()
    third = address()
    assert third != second
    (run / "pivot.safetensors").write_bytes(b"another")
    assert address() != third


def test_a_tokenizers_own_folder_can_still_be_saved_to(
    model: RPiAE, testing: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "alone"
    save_tokenizer(model, folder)
    evaluate_saved(
        folder, EvaluationConfig(data=f"folder:{testing}", metrics=("psnr",), num_images=3)
    )
    assert (folder / EVALUATION_FILE).is_file()
    save_tokenizer(model, folder)
    assert not (folder / EVALUATION_FILE).exists()
    (folder / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="left alone"):
        save_tokenizer(model, folder)


def test_results_of_a_runs_tokenizer_are_the_runs(run: Path, testing: Path) -> None:
    config = EvaluationConfig(data=f"folder:{testing}", metrics=("psnr",), num_images=3)
    evaluate_saved(run / "tokenizer", config)
    assert (run / EVALUATION_FILE).is_file()
    assert is_evaluated(run, config)


def test_distances_between_other_neighbours_are_not_compared(
    run: Path, testing: Path, training: Path
) -> None:
    name = f"ifd[{SPACE}]"
    few, many = (
        measure(run, testing, f"ifd:{SPACE}", training=f"folder:{training}", num_training=n)
        for n in (5, 20)
    )
    with pytest.raises(UsageError, match=r"neighbours: .*training\.count"):
        check_comparable(
            name, {"a": few.protocol["metrics"][name], "b": many.protocol["metrics"][name]}
        )


def test_a_study_is_told_before_it_trains(run: Path, testing: Path) -> None:
    subject = open_subject(run, torch.device("cpu"))
    tokenizer = subject.model.config
    assert tokenizer is not None
    for config, message in (
        (EvaluationConfig(metrics=("pnsr",)), "'psnr'"),
        (EvaluationConfig(metrics=("rfd:cnn:none.safetensors",)), "none.safetensors"),
        (EvaluationConfig(data="folder:nowhere"), "nowhere"),
        (EvaluationConfig(data=f"folder:{testing}", metrics=("probe",)), "which is not given"),
        (EvaluationConfig(data=f"folder:{testing}", metrics=("ifd",)), "evaluation.training"),
    ):
        with pytest.raises(RpiaeError, match=message):
            check_evaluation(config, tokenizer)
    check_evaluation(EvaluationConfig(), tokenizer)

"""Saved tokenizers on videos: of images or of clips, by ``rpiae eval`` and at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rpiae
from rpiae import runs
from rpiae.cli.main import main
from rpiae.core.config.tree import dump_toml
from rpiae.core.errors import UsageError
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.runtime.processes import Runtime
from rpiae.data.configs import VideosConfig
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.evaluating import Evaluation, evaluate
from rpiae.evaluation.final import evaluate_run
from rpiae.evaluation.protocol import EVALUATION_FILE, check_comparable, number_protocol
from rpiae.evaluation.saved import check_evaluation, evaluate_saved
from rpiae.evaluation.subjects import (
    CLIP_METRICS,
    IMAGE_METRICS,
    default_metrics,
    interpolating,
    open_subject,
)
from rpiae.evaluation.trained_run import read_run
from rpiae.tasks.tokenizer.pivot import write_pivot
from tests.toys import BRIDGES, DECODERS, ENCODERS
from tests.videos import moving, write

FRAMES = 5
PARTS: dict[str, dict[str, Any]] = {
    "image": {"bridge": "vb4", "decoder": DECODERS["vit"]},
    "video": {"bridge": BRIDGES["tvb4x4"], "decoder": DECODERS["video-vit"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 25 frames per second, and a picture apart from them."""
    made = tmp_path_factory.mktemp("data")
    (made / "videos").mkdir()
    for number in range(2):
        write(made / "videos" / f"{number}.mp4", moving(22, 32, 32, seed=number), rate=25)
    (made / "images").mkdir()
    for number in range(3):
        Image.fromarray(moving(1, 32, 32, seed=number)[0]).save(made / "images" / f"{number}.png")
    return made


def videos(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "name": "videos", "path": str(folder / "videos"), "frames": FRAMES, "image_size": 16,
        "workers": 0, **fields,
    }  # fmt: skip


def finished(place: Path, kind: str, data: dict[str, Any]) -> Path:
    """A finished run's folder, as far as an evaluation looks at it."""
    parts = {"encoder": ENCODERS["vit"], **PARTS[kind]}
    save_tokenizer(rpiae.build(**parts, seed=1), place / "tokenizer")
    pivot = rpiae.build(**parts, seed=5)
    write_pivot(place, pivot.roles["encoder"])
    tree = {**parts, "data": data, "recipe": "quick"}
    tree["encoder"] = {**ENCODERS["vit"], "pretrained": True}
    (place / "config.toml").write_text(dump_toml(runs.resolve(tree).config))
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "v", "video", videos(folder))


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    data = {"name": "folder", "path": str(folder / "images"), "image_size": 16, "workers": 0}
    return finished(tmp_path_factory.mktemp("runs") / "i", "image", data)


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def measure(run: Path, data: Any, *metrics: Any, every: int = 1, **options: Any) -> Evaluation:
    runtime = Runtime(device="cpu", precision="fp32")
    config = EvaluationConfig(data=data, metrics=metrics, **options)
    subject = interpolating(open_subject(run, runtime.device), every=every)
    return evaluate(subject, config, runtime=runtime)


def test_videos_are_measured_clip_by_clip(run: Path, folder: Path) -> None:
    found = measure(run, videos(folder), *CLIP_METRICS, "trajectory", batch_size=1)
    assert found.metrics["latent_values_per_second"] == pytest.approx(4 * 4 * 4 * 25 / 4)
    assert {"psnr_rest", "ssim", "temporal", "flicker", "rfvd[tiny]", "trajectory"} < (
        found.metrics.keys() | {"psnr_rest"}
    )
    assert found.protocol["count"] == 8
    assert (found.protocol["frames"], found.protocol["stride"]) == (FRAMES, 1)
    assert "clips of 5 frames" in found.protocol["crop"]
    whole = measure(run, videos(folder), *CLIP_METRICS, "trajectory")
    for name, value in found.metrics.items():
        assert whole.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert whole.protocol == found.protocol


def test_numbers_of_other_clips_are_not_compared(run: Path, folder: Path) -> None:
    found = {
        text: measure(run, videos(folder, **fields), "psnr", "rfvd:tiny")
        for text, fields in (("one", {}), ("other", {"stride": 2, "frame_rate": 12.5}))
    }
    for name in ("psnr", "rfvd[tiny]"):
        protocols = {k: number_protocol(each.protocol, name) for k, each in found.items()}
        with pytest.raises(
            UsageError, match="stride: 1 and 2; frame_rate: each video's own and 12"
        ):
            check_comparable(name, protocols)


def test_images_and_clips_on_either_tokenizer(run: Path, image_run: Path, folder: Path) -> None:
    """One of images sees clips frame by frame; one of clips sees images as clips of one frame."""
    by_frame = measure(image_run, videos(folder), *CLIP_METRICS)
    assert by_frame.metrics["latent_values_per_second"] == pytest.approx(4 * 4 * 4 * 25)
    images = {"name": "folder", "path": str(folder / "images"), "workers": 0, "image_size": 16}
    found = measure(run, images, "psnr", "latents", "temporal")
    assert "frames" not in found.protocol
    assert {"psnr", "psnr_pooled", "latent_std"} <= found.metrics.keys()
    assert not {"psnr_first", "temporal"} & found.metrics.keys()
    assert any(
        text.startswith("temporal is left out: ") and text.endswith("holds images, and it is of clips")
        for text in found.warnings
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"flicker, rfvd:tiny cannot be measured: .* holds images"):
        measure(run, images, "flicker", "rfvd:tiny")


def test_every_nth_frame_is_what_time_has_to_beat(image_run: Path, folder: Path) -> None:
    found = measure(image_run, videos(folder), "psnr", "temporal", "latents", "drift", every=4)
    all_frames = measure(image_run, videos(folder), "psnr", "latents")
    assert found.protocol["interpolated"].startswith("one frame in 4")
    assert found.metrics["psnr_first"] == pytest.approx(all_frames.metrics["psnr_first"], abs=1e-6)
    share = (
        found.metrics["latent_values_per_second"] / all_frames.metrics["latent_values_per_second"]
    )
    assert share == pytest.approx(1 / 4)
    assert any(text.startswith("drift is left out") for text in found.warnings)
    images = {"name": "folder", "path": str(folder / "images"), "workers": 0, "image_size": 16}
    with pytest.raises(UsageError, match="frames can be kept and interpolated of clips"):
        measure(image_run, images, "psnr", every=4)


def test_what_is_measured_where_nothing_is_named(run: Path, image_run: Path, folder: Path) -> None:
    assert default_metrics(run, EvaluationConfig()) == CLIP_METRICS
    assert default_metrics(image_run, EvaluationConfig()) == IMAGE_METRICS
    on_videos = EvaluationConfig(data=f"videos:{folder / 'videos'}")
    assert default_metrics(image_run, on_videos) == CLIP_METRICS
    on_images = EvaluationConfig(data=f"folder:{folder / 'images'}")
    assert default_metrics(run, on_images) == IMAGE_METRICS
    assert default_metrics(run / "tokenizer", on_images) == IMAGE_METRICS


def test_the_command_measures_stores_and_pictures_clips(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "eval", str(run), "--data", f"videos:{folder / 'videos'}", "--set", "data.workers=0",
        "--set", f"data.frames={FRAMES}", "--set", "data.image_size=16", "--device", "cpu",
        "--crop", "centre",
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "rfvd[tiny]" in shown
    assert "8 clips of 5 frames each of " in shown
    stored = json.loads((run / EVALUATION_FILE).read_text())
    assert stored["protocol"]["frame_rate"] == "each video's own"
    assert len(stored["details"]["psnr"]["psnr_by_frame"]) == FRAMES
    sizes = {name: size_of(run / "pictures" / f"{name}.png") for name in ("originals", "held-out")}
    assert set(sizes.values()) == {(FRAMES * 16, 4 * 16 + 3 * 4)}, "four clips, with gaps"
    assert size_of(run / "pictures" / "slices.png") == (4 * FRAMES * 4 + 3 * 4, 2 * 16 + 4)
    before = (run / EVALUATION_FILE).read_bytes()
    assert main([*arguments, "--every", "4", "--metrics", "psnr,temporal", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree[str(run)]["metrics"].keys() > {"psnr", "temporal"}
    assert (run / EVALUATION_FILE).read_bytes() == before


def test_references_are_of_clips(run: Path, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "clips.safetensors"
    runtime = Runtime(device="cpu", precision="fp32")
    subject = open_subject(run, runtime.device)
    for metric in ("rfd", "rfvd"):
        config = EvaluationConfig(data=videos(folder), metrics=(f"{metric}:tiny",))
        direct = evaluate(subject, config, runtime=runtime, reference_out=place)
        assert direct.unwritten == ()
        table = {"name": metric, "space": "tiny", "reference": str(place)}
        again = measure(run, videos(folder), table)
        assert again.metrics == direct.metrics
        with pytest.raises(UsageError, match="reference of other images"):
            measure(run, videos(folder, frames=3), table)
    with pytest.raises(UsageError, match="another feature space"):
        measure(run, videos(folder), {"name": "rfd", "space": "tiny", "reference": str(place)})


def test_what_a_run_held_out(run: Path) -> None:
    found = measure(run, "", "psnr", "temporal", "latents")
    assert found.protocol["frames"] == FRAMES
    assert found.metrics["latent_values_per_second"] == pytest.approx(4 * 4 * 4 * 25 / 4)


def test_the_end_of_a_run_on_clips(run: Path, image_run: Path) -> None:
    found = evaluate_run(run, Runtime(device="cpu", precision="fp32"))
    assert {
        "psnr", "ssim", "psnr_mean_colour", "psnr_pca", "drift", "psnr_first", "temporal",
        "flicker", "static_share",
    } <= found.keys()  # fmt: skip
    assert all("@" in name for name in found["photographs"]), "a clip counts as a photograph"
    mean = torch.tensor([each["psnr"] for each in found["photographs"].values()]).mean().item()
    assert mean == pytest.approx(found["psnr"], rel=1e-6)
    made = list((run / "samples").iterdir())
    pictures = [place for place in made if not place.stem.endswith("-slice")]
    assert len(pictures) == len(found["photographs"]) == len(made) / 2
    sliced = pictures[0].with_name(f"{pictures[0].stem}-slice.png")
    assert size_of(sliced) == (FRAMES * 4, 2 * 16 + 4)
    assert size_of(pictures[0]) == (FRAMES * 16, 3 * 16 + 2 * 4)
    images = evaluate_run(image_run, Runtime(device="cpu", precision="fp32"))
    assert list(images) == ["psnr", "ssim", "psnr_mean_colour", "psnr_pca", "drift", "photographs"]


def test_a_study_refuses_metrics_of_clips_on_images(folder: Path) -> None:
    model = rpiae.build(encoder=ENCODERS["vit"], **PARTS["image"])
    assert model.config is not None
    config = EvaluationConfig(data=f"folder:{folder / 'images'}", metrics=("psnr", "temporal"))
    with pytest.raises(UsageError, match=r"temporal cannot be measured: .* holds images"):
        check_evaluation(config, model.config)


def test_nothing_is_stored_of_every_nth_frame(run: Path, folder: Path) -> None:
    stored = (run / EVALUATION_FILE).read_bytes()
    config = EvaluationConfig(data=videos(folder), metrics=("psnr",))
    runtime = Runtime(device="cpu", precision="fp32")
    found = evaluate_saved(run, config, runtime=runtime, every=2)
    assert found.notices == ("its numbers are not stored",)
    assert (run / EVALUATION_FILE).read_bytes() == stored


def test_it_is_said_where_a_run_learned_from_what_it_is_measured_on(
    run: Path, folder: Path
) -> None:
    def said(**fields: Any) -> str:
        return " ".join(measure(run, videos(folder, **fields), "psnr").warnings)

    own = read_run(run).data
    assert isinstance(own, VideosConfig)
    assert "was trained on parts of 2 of these videos" in said()
    assert "trained on" in said(portion="held-out", held_out=own.held_out, stride=own.stride + 1)
    assert "trained on" not in said(portion="held-out", held_out=own.held_out)

"""A video run that starts from an image run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import rpiae
from rpiae import runs
from rpiae.core.config.tree import Tree
from rpiae.core.errors import CheckpointError
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.training import events
from tests.short_run import short_video_run, write_images, write_videos
from tests.unit.test_start import DECODER, ENCODER, begun, source, started

__all__ = ["source"]  # a fixture

VIDEO: Tree = {"name": "video", "image": DECODER}
CONV: Tree = {"name": "conv", "width": 16, "depth": 1, "blocks": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("start") / "images", count=6)


@pytest.mark.parametrize("every", [1, 2, 4, 8])
def test_it_begins_as_the_image_run_on_single_images(
    images: Path, tmp_path: Path, source: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = started(images, tmp_path / "out", source, bridge=f"tvb6x{every}", decoder=VIDEO)
    model, saved = begun(tree, monkeypatch), load_tokenizer(source)
    taken = {
        re.sub(r"^(bridge|decoder)\.", r"\1.image.", n): t for n, t in saved.state_dict().items()
    }
    own = model.state_dict()
    assert taken.keys() <= own.keys()
    assert all(torch.equal(own[name], value) for name, value in taken.items())
    pictures = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latent = saved.eval().encode(pictures).mode()
        assert torch.equal(model.eval().encode(pictures).mode(), latent)
        assert torch.equal(model.decode(latent), saved.decode(latent))
        clip = pictures.unsqueeze(2)
        assert torch.equal(model.reconstruct(clip).squeeze(2), saved.reconstruct(pictures))
    pivots = [(f / "pivot.safetensors").read_bytes() for f in (source, tmp_path / "out")]
    assert pivots[0] == pivots[1], "the pivot of the image run stays the anchor"


def test_the_generic_parts_take_over_any_bridge_and_decoder(
    images: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = {"name": "conv-kl", "latent_channels": 3, "width": 8, "blocks": 1}
    image = rpiae.build(encoder=ENCODER, bridge=conv, decoder=CONV, seed=1)
    save_tokenizer(image.eval(), source / "tokenizer")
    parts = {
        "bridge": {"name": "temporal", "image": conv},
        "decoder": {"name": "video", "image": CONV},
    }
    model = begun(started(images, tmp_path / "out", source, **parts), monkeypatch).eval()
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.reconstruct(pictures), image.reconstruct(pictures))


def test_a_video_run_goes_on_from_a_video_run(
    images: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"bridge": "tvb6x2", "decoder": VIDEO}
    first = begun(started(images, tmp_path / "first", source, **parts), monkeypatch)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    save_tokenizer(first, tmp_path / "first" / "tokenizer")
    second = begun(started(images, tmp_path / "second", tmp_path / "first"), monkeypatch)
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for (_, one), other in pairs)


def test_it_trains_on_videos(tmp_path: Path, source: Path) -> None:
    videos = write_videos(tmp_path / "videos")
    tree = short_video_run(videos, tmp_path / "out", max_steps=1, evaluate_every=0)
    tree |= {"init": str(source), "bridge": "tvb6x4", "decoder": VIDEO}
    del tree["encoder"]
    happened = runs.run(tree)
    done = []
    for event in happened:
        if isinstance(event, events.StageEnded):
            done.append(event.stage)
            if event.stage == "polish":
                break
    happened.close()  # type: ignore[attr-defined]  # a generator
    assert done == ["tune", "compress", "polish"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bridge": {"name": "temporal", "image": "conv-kl6"}},
            r"bridge 'temporal' cannot begin with the weights of 'vb6', which .*source holds",
        ),
        (
            {"decoder": {"name": "video", "image": CONV}},
            r"decoder 'video' cannot begin with the weights of 'vit', which .*source holds",
        ),
        (
            {"bridge": "tvb5x4"},
            r"holds another architecture than this run: bridge: \d+ tensors of another shape",
        ),
        ({"decoder": "video-vit-t"}, r"another architecture than this run: decoder: \d+ tensors"),
    ],
    ids=["bridge", "decoder", "channels", "size"],
)
def test_what_cannot_begin_as_the_image_run_is_refused_in_a_sentence(
    images: Path, tmp_path: Path, source: Path, changes: Tree, message: str
) -> None:
    tree = started(images, tmp_path / "out", source, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        runs.plan(runs.resolve(tree))
    assert "\n" not in str(caught.value)
    assert "--parts" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_image_run_does_not_begin_as_a_video_run(
    images: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: dict[str, Any] = {"bridge": "tvb6x2", "decoder": VIDEO}
    first = begun(started(images, tmp_path / "first", source, **parts), monkeypatch)
    save_tokenizer(first, tmp_path / "first" / "tokenizer")
    for part in ({"bridge": "vb6"}, {"decoder": DECODER}):
        with pytest.raises(CheckpointError, match="holds another architecture than this run"):
            runs.plan(runs.resolve(started(images, tmp_path / "out", tmp_path / "first", **part)))


def test_what_has_no_effect_without_motion_is_said() -> None:
    def said(*overrides: str, data: str) -> list[str]:
        parts = {"encoder": "tiny", "bridge": "tvb4x4", "decoder": "video-vit-t"}
        tree = parts | {"recipe": "video", "data": data}
        notices = runs.resolve(tree, overrides=overrides).notices
        return [text for text in notices if "no effect" in text]

    assert said(data="sample") == [
        "stage images: image_share has no effect, as the data are images",
        "stage tune: pivot-trajectory has no effect, as the data are images",
        "stage compress: image_share and temporal-difference have no effect, as the data are images",
        "stage polish: image_share and temporal-difference and flicker have no effect, as the data are "
        "images",
    ]
    assert said(data="videos:films") == []
    assert said("data.frames=1", data="videos:films")[1] == (
        "stage tune: pivot-trajectory has no effect, as clips have one frame (data.frames)"
    )
    assert said("recipe.stages[1].image_share=1.0", data="videos:films") == [
        "stage tune: pivot-trajectory has no effect, as all steps are of single frames"
    ]


def test_the_stage_of_images_is_left_out_and_said(
    images: Path, tmp_path: Path, source: Path
) -> None:
    parts = {"bridge": "tvb6x2", "decoder": VIDEO, "recipe": "video"}
    resolved = runs.resolve(started(images, tmp_path / "out", source, **parts))
    names = [stage.name for stage in resolved.config.recipe.stages]
    assert names == ["tune", "compress", "polish"]
    assert f"stage images left out, as the run starts from {source}" in resolved.notices
    assert [stage.image_share for stage in runs.plan(resolved).stages] == [0, 0.25, 0.25]
    own = {"init": "", "encoder": "tiny"} | parts
    whole = runs.resolve(started(images, tmp_path / "out", source, **own))
    assert [stage.name for stage in whole.config.recipe.stages] == ["images", *names]

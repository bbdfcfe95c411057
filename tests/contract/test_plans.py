"""Every encoder preset plans with every kind of bridge and decoder, without a network."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
import pytest_socket

from rpiae import runs
from rpiae.cli.main import main
from rpiae.core.registry.registry import registry

PRESETS = [preset.name for preset in registry("encoders").presets()]
PARTNERS = [
    *itertools.product(("vb64", "identity", "conv"), ("vit-b", "conv")),
    ("tvb64x4", "video-vit-b"),
]

NAMES = {
    "encoders": {
        "open-clip", "timm", "siglip-b", "siglip-l", "siglip-so400m", "siglip2-b", "siglip2-l",
        "siglip2-so400m", "clip-b", "mae-b", "mae-l", "mae-h", "dinov3-s", "dinov3-b", "dinov3-l",
        "dinov3-l-k7", "dinov2-b-noreg", "eupe-b", "pe-core-b", "i-jepa-h",
    },
    "bridges": {
        "linear", "conv", "conv-kl", "identity", "variational", "temporal", "temporal-variational",
    },
    "decoders": {"conv", "vit", "video", "video-vit-t"},
    "losses": {
        "lpips", "adversarial", "pivot", "pivot-cosine", "pivot-relational", "pivot-noisy",
        "pivot-perceptual", "temporal-difference", "flicker", "pivot-trajectory",
    },
    "critics": {"dino", "patch"},
    "datasets": {
        "hf", "webdataset", "mixture", "folder", "parquet", "sample", "digits", "videos",
    },
    "recipes": {"rpiae", "quick-gan", "video"},
}  # fmt: skip


@pytest.fixture
def offline() -> Iterator[None]:
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("bridge", "decoder"), PARTNERS)
@pytest.mark.parametrize("encoder", PRESETS)
def test_plan(encoder: str, bridge: str, decoder: str) -> None:
    tree = {"encoder": encoder, "bridge": bridge, "decoder": decoder}
    plan = runs.plan(runs.resolve(tree))
    facts = runs.resolve(tree).tokenizer
    assert [part.label for part in plan.parts] == [encoder, bridge, decoder]
    assert plan.parts[0].parameters > 1_000_000
    assert plan.latent[0] == facts.bridge_facts.latent_channels
    assert plan.latent[1] == plan.latent[2] == plan.image_size // facts.output_patch
    assert {stage.name for stage in plan.stages} >= {"tune", "compress", "polish"}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("bridge", "decoder"), PARTNERS)
def test_dry_run_of_a_small_preset(
    bridge: str, decoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--encoder", "eupe-t", "--bridge", bridge, "--decoder", decoder, "--dry-run"]
    assert main(["build", *options]) == 0
    out = capsys.readouterr().out
    assert "eupe-t" in out
    assert "stages of recipe rpiae" in out


def test_list_has_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    for family, names in NAMES.items():
        rows = {row["name"]: row for row in listing[family]}
        assert names <= rows.keys(), family
        assert all(rows[name]["summary"] for name in names)

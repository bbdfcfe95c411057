"""Feature spaces: what they compute, what they say of themselves, and what they refuse."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from rpiae.core.errors import (
    CheckpointError,
    FetchError,
    MissingExtraError,
    UnknownNameError,
    UsageError,
)
from rpiae.core.model.resolve import part_config
from rpiae.data.orders import permutation
from rpiae.evaluation import spaces
from rpiae.evaluation.cnn import SmallCnn, read_cnn, save_cnn
from rpiae.evaluation.inception_score import inception_score
from rpiae.evaluation.seen import Seen
from rpiae.evaluation.spaces import (
    CnnSpace,
    EncoderSpace,
    FeatureSpace,
    InceptionSpace,
    feature_space,
)
from tests.toys import ENCODERS


def images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    """A small CNN's file, random weights."""
    torch.manual_seed(0)
    path = tmp_path / "cnn.safetensors"
    save_cnn(SmallCnn(widths=(4, 8, 16), classes=3), path, accuracy=0.25, seed=7, training="none")
    return path


def vit(folder: Path, **changes: Any) -> Any:
    """Config of a toy encoder with its weights in a file."""
    config = part_config("encoders", ENCODERS["vit"])
    torch.manual_seed(0)
    state = {**config.build().state_dict(), **changes}
    save_file(state, folder / "vit.safetensors")
    return part_config(
        "encoders",
        ENCODERS["vit"] | {"weights": str(folder / "vit.safetensors"), "mean": [0.1] * 3},
    )


@pytest.fixture(params=["tiny", "cnn"])
def space(request: pytest.FixtureRequest, cnn: Path) -> FeatureSpace:
    return feature_space("tiny" if request.param == "tiny" else f"cnn:{cnn}")


# Every space


def test_vectors_are_fp32_without_gradients_and_leave_no_trace(space: FeatureSpace) -> None:
    assert isinstance(space, FeatureSpace)
    given = images(3, 32, 32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inside = space(given)
    found = space(given)
    assert found.shape == (3, space.dimensions)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(inside, found)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_a_vector_does_not_depend_on_its_batch(space: FeatureSpace) -> None:
    given = images(7, 32, 32)
    split = torch.cat([space(given[:1]), space(given[1:5]), space(given[5:])])
    torch.testing.assert_close(split, space(given), atol=1e-5, rtol=1e-5)


def test_images_need_not_be_square(space: FeatureSpace) -> None:
    wide = images(2, 24, 42)
    found = space(wide)
    assert found.shape == (2, space.dimensions)
    assert found.isfinite().all()
    assert (found - space(wide.transpose(2, 3))).abs().max() > 1e-3


def test_half_precision_images_are_taken_as_fp32(space: FeatureSpace) -> None:
    given = images(2, 32, 32).half()
    assert torch.equal(space(given), space(given.float()))


def test_facts_are_plain_values(space: FeatureSpace) -> None:
    facts = json.loads(json.dumps(dict(space.facts)))
    assert facts == space.facts
    assert {"extractor", "layer", "input", "weights_sha256", "versions"} <= set(facts)
    assert len(facts["weights_sha256"]) == 64
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")


def test_to_moves_the_weights_and_returns_the_space(
    space: FeatureSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert space.to(torch.device("cpu")) is space
    # The meta device, which stands in for another, has no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    assert space.to("meta") is space
    assert space(images(2, 32, 32)).device.type == "meta"


@pytest.mark.gpu
def test_vectors_on_a_gpu_are_those_of_the_processor(space: FeatureSpace) -> None:
    given = images(2, 32, 32)
    wanted = space(given)
    found = space.to("cuda")(given)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-2, rtol=1e-2)


def test_building_leaves_the_generator_alone(cnn: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    feature_space("tiny")
    feature_space(f"cnn:{cnn}")
    assert torch.equal(torch.get_rng_state(), before)


# Encoders


@pytest.mark.parametrize("size", [(32, 32), (24, 44)])
def test_encoder_space_is_the_mean_of_the_tokens(size: tuple[int, int]) -> None:
    config = part_config("encoders", "tiny")
    encoder = config.build().eval()
    config.load_pretrained(encoder)  # type: ignore[attr-defined]  # an encoder's
    given = images(2, *size)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    with torch.no_grad():
        wanted = encoder((given - mean) / std).tokens.mean(1)
    space = feature_space("tiny")
    assert (space.name, space.dimensions) == ("tiny", 192)
    torch.testing.assert_close(space(given), wanted, atol=1e-5, rtol=1e-5)
    assert space.facts["config"]["preset"] == "tiny"


def test_images_are_resized_by_the_output_patch(tmp_path: Path) -> None:
    """Patch 14 stands for 16 image pixels: 20×34 is padded to 32×48 and resized to 28×42."""
    config = part_config("encoders", ENCODERS["timm"])
    torch.manual_seed(0)
    encoder = config.build().eval()
    path = tmp_path / "timm.safetensors"
    save_file(encoder.network.state_dict(), path)
    given = images(2, 20, 34)
    padded = F.pad(given, (0, 14, 0, 12), mode="reflect")
    resized = F.interpolate(padded, size=(28, 42), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    with torch.no_grad():
        wanted = encoder((resized - mean) / std).tokens
    assert wanted.shape[1] == 6
    table = ENCODERS["timm"] | {"weights": str(path)}
    space = EncoderSpace("toy", part_config("encoders", table))  # type: ignore[arg-type]  # an encoder's
    torch.testing.assert_close(space(given), wanted.mean(1), atol=1e-5, rtol=1e-5)
    assert {"timm", "torch"} <= set(space.facts["versions"])


def test_the_hash_follows_the_weights(tmp_path: Path) -> None:
    config = vit(tmp_path)
    first = EncoderSpace("vit", config).facts["weights_sha256"]
    assert EncoderSpace("vit", config).facts["weights_sha256"] == first
    state = load_file(tmp_path / "vit.safetensors")
    name = next(name for name, value in state.items() if value.ndim == 2)
    changed = state[name].clone()
    changed[0, 0] += 1e-3
    again = EncoderSpace("vit", vit(tmp_path, **{name: changed}))
    assert again.facts["weights_sha256"] != first


def test_an_encoder_without_weights() -> None:
    with pytest.raises(UsageError, match=r"encoder 'vit' names no weights"):
        feature_space("vit")


# Inception


def test_inception_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match=r'torch-fidelity.*pip install "rpiae\[fid\]"'):
        feature_space("inception")


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torch-fidelity's Inception-v3 with random weights."""
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed"
    )

    class Blank(module.FeatureExtractorInceptionV3):  # type: ignore[name-defined, misc]  # imported
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            """Keep what the constructor drew."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(dict(Blank("blank", ["2048"], empty).state_dict()), path)
    return path


def test_inception_is_the_librarys(inception: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    given = torch.cat([images(1, 20, 30), images(1, 20, 30) * 1.5 - 0.25])
    eight = (given.clamp(0, 1) * 255).round().to(torch.uint8)
    (wanted,) = FeatureExtractorInceptionV3("direct", ["2048"], str(inception)).eval()(eight)
    space = feature_space(f"inception:{inception}")
    assert (space.name, space.dimensions) == ("inception", 2048)
    found = space(given)
    assert found.shape == (2, 2048)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found.abs().max() > 0
    assert torch.equal(found, wanted)
    assert space.facts["weights_sha256"] == hashlib.sha256(inception.read_bytes()).hexdigest()
    assert "torch-fidelity" in space.facts["versions"]
    assert json.loads(json.dumps(dict(space.facts))) == space.facts
    torch.testing.assert_close(space(given[:1]), wanted[:1], atol=1e-5, rtol=1e-5)


def test_generated_images_in_inception(inception: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    given = images(11, 20, 20)
    seen = [
        Seen(given[part], labels=torch.zeros(len(given[part])), positions=torch.arange(11)[part])
        for part in (slice(4, 11), slice(0, 4))
    ]
    score = part_config("metrics", f"inception-score:{inception}").build()
    distance = part_config("metrics", f"gfd:inception:{inception}").build()
    for each in seen:
        score.update(each)
        distance.update(each)
        distance.update_real(each)
    layer = ["logits_unbiased"]
    network = FeatureExtractorInceptionV3("direct", layer, str(inception)).eval()
    (logits,) = network((given * 255).round().to(torch.uint8))
    drawn = logits[permutation(11, 0, "inception-score")]
    found = score.compute()
    expected, spread = inception_score(drawn)
    assert found.values == pytest.approx({"inception_score": expected}, rel=1e-4)
    assert found.details["spread"] == pytest.approx(spread, rel=1e-2)
    json.dumps(dict(found.facts))
    assert distance.compute().values == {"gfid": pytest.approx(0, abs=1e-4)}


def test_inception_runs_no_code_from_its_file(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    written = tmp_path / "written"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (written,)

    torch.save({"fc.weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="not a plain weights file"):
        feature_space(f"inception:{tmp_path / 'bomb.pth'}")
    assert not written.exists()


def test_inception_files_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    with pytest.raises(CheckpointError, match=r"'inception': there is no file .*none\.pth"):
        InceptionSpace(tmp_path / "none.pth")
    save_file({"fc.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"another architecture.*Inception-v3: ") as caught:
        feature_space(f"inception:{tmp_path / 'other.safetensors'}")
    assert "\n" not in str(caught.value)


def test_inception_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")

    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(FetchError, match=r"could not be fetched from https.*inception:PATH") as one:
        feature_space("inception")
    assert "\n" not in str(one.value)
    assert not list(tmp_path.rglob("*.pth*"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        feature_space("inception")


@pytest.mark.usefixtures("socket_disabled")
def test_inception_is_taken_from_the_cache_where_its_digest_is_right(
    inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256(inception.read_bytes()).hexdigest()
    monkeypatch.setattr(spaces, "INCEPTION_URL", f"https://example.org/inception-{sha256[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = tmp_path / "hub" / "checkpoints" / f"inception-{sha256[:8]}.pth"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(inception)
    assert feature_space("inception").facts["weights_sha256"] == sha256
    cached.unlink()
    cached.write_bytes(inception.read_bytes()[:-100])
    with pytest.raises(FetchError, match="is there, but damaged or another file"):
        feature_space("inception")


# The small CNN


def test_cnn_comes_back_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = SmallCnn(widths=(4, 8, 16), classes=3).eval()
    path = tmp_path / "cnn.safetensors"
    written = save_cnn(model, path, accuracy=0.25, seed=7, training="none")
    again, facts = read_cnn(path)
    assert facts == written
    assert (facts.widths, facts.classes, facts.accuracy, facts.seed) == ((4, 8, 16), 3, 0.25, 7)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    given = images(2, 32, 40)
    with torch.no_grad():
        assert torch.equal(again(given), model(given))
        assert torch.equal(CnnSpace(path)(given), model.features(given))
    assert list(tmp_path.iterdir()) == [path]


def test_cnn_head_sees_the_features() -> None:
    torch.manual_seed(0)
    model = SmallCnn().eval()
    given = images(2, 32, 32)
    features = model.features(given)
    assert features.shape == (2, model.dimensions) == (2, 128)
    assert (features >= 0).all()
    assert torch.equal(model(given), F.linear(features, model.head.weight, model.head.bias))
    assert 3e5 < sum(p.numel() for p in model.parameters()) < 1e6


def test_cnn_space_says_what_the_file_says(cnn: Path) -> None:
    space = feature_space(f"CNN:{cnn}")
    assert (space.name, space.dimensions) == ("cnn", 16)
    facts = space.facts
    assert (facts["accuracy"], facts["seed"], facts["training"]) == (0.25, 7, "none")
    assert facts["architecture"]["widths"] == [4, 8, 16]


def test_cnn_hash_follows_the_weights(tmp_path: Path) -> None:
    model = SmallCnn(widths=(4, 8, 16))
    path = tmp_path / "cnn.safetensors"
    hashes = []
    for change in (0.0, 0.0, 1e-3):
        model.head.bias.data[0] += change
        save_cnn(model, path, accuracy=0.0, seed=0, training="")
        hashes.append(CnnSpace(path).facts["weights_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_cnn_takes_the_smallest_image_and_no_smaller(cnn: Path) -> None:
    space = feature_space(f"cnn:{cnn}")
    assert space(images(1, 8, 8)).isfinite().all()
    with pytest.raises(UsageError, match="at least 8 pixels a side, not 7×32"):
        space(images(1, 7, 32))


def test_cnn_files_that_are_damaged(cnn: Path) -> None:
    whole = cnn.read_bytes()
    cnn.write_bytes(whole[:-40])
    with pytest.raises(CheckpointError, match=r"cannot be read as weights: .*train_small_cnn"):
        read_cnn(cnn)
    cnn.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is damaged: its weights"):
        read_cnn(cnn)
    cnn.write_bytes(whole.replace(b'"0.25"', b'"half"'))
    with pytest.raises(CheckpointError, match="metadata do not fit"):
        read_cnn(cnn)
    cnn.write_text("hello")
    with pytest.raises(CheckpointError, match=r"cannot be read as weights: .*train_small_cnn"):
        read_cnn(cnn)


def test_cnn_files_of_something_else(cnn: Path, tmp_path: Path) -> None:
    whole = cnn.read_bytes()
    cnn.write_bytes(whole.replace(b'"4 8 16"', b'"4 8 32"'))
    with pytest.raises(CheckpointError, match=r"another architecture.*widths \(4, 8, 32\)"):
        read_cnn(cnn)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match="is no small CNN: it names no format"):
        feature_space(f"cnn:{other}")
    with pytest.raises(CheckpointError, match=r"there is no file .*train_small_cnn\.py"):
        feature_space(f"cnn:{tmp_path / 'none'}")


# Names


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"no feature space named 'incepton'\. Did you mean 'inception'\?") as one:  # fmt: skip
        feature_space("incepton:weights.pth")
    assert "cnn:PATH" in str(one.value)
    assert "rpiae list encoders" in str(one.value)
    assert "\n" not in str(one.value)
    with pytest.raises(UnknownNameError, match="Did you mean 'dinov2-b'"):
        feature_space("dinv2-b")
    with pytest.raises(UnknownNameError, match="'vit' takes no argument"):
        feature_space("vit:large")


@pytest.mark.parametrize("text", ["cnn", "cnn:", "inception:"])
def test_names_that_lack_their_file(text: str) -> None:
    with pytest.raises(UsageError, match=rf"feature space '{text}' lacks a file: write .*:PATH"):
        feature_space(text)

"""LPIPS against torchmetrics' own, and what is said where its weights cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torchmetrics.functional.image.lpips import _LPIPS

from rpiae.core.errors import CheckpointError, FetchError, UsageError
from rpiae.losses.configs import LpipsLossConfig
from rpiae.losses.lpips import LpipsLoss, packaged_heads, read_state


def random_state(model: str) -> dict[str, torch.Tensor]:
    """Random weights of the convolutions of a torchvision VGG."""
    torch.manual_seed(0)
    with torch.device("meta"):
        features = torchvision.models.get_model(model, weights=None).features
    return {
        f"features.{name}": torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
        for name, value in features.state_dict().items()
    }


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGG-16 file in torchvision's layout, with random weights and without its classifier."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(random_state("vgg16"), path)
    return path


def test_agrees_with_torchmetrics_on_shared_weights(vgg: Path) -> None:
    ours = LpipsLossConfig(name="lpips", weights=str(vgg)).build()
    reference = _LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    state = read_state(vgg)
    layers = {
        int(name): layer
        for part in (reference.net.slice1, reference.net.slice2, reference.net.slice3,
                     reference.net.slice4, reference.net.slice5)
        for name, layer in part.named_children()
        if isinstance(layer, torch.nn.Conv2d)
    }  # fmt: skip
    assert len(layers) == 13
    for index, layer in layers.items():
        layer.load_state_dict({k: state[f"features.{index}.{k}"] for k in ("weight", "bias")})
    one, other = torch.rand(2, 3, 3, 40, 56)
    with torch.no_grad():
        wanted = reference(one, other, normalize=True).flatten()
        found = ours.distance(one, other)
    assert (found > 0).all()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert ours.distance(one, one).abs().max() == 0


def test_gradient_reaches_the_reconstruction_alone(vgg: Path) -> None:
    loss = LpipsLoss(backbone=read_state(vgg), heads=read_state(packaged_heads()))
    loss.requires_grad_(False)
    made = torch.rand(1, 3, 32, 32, requires_grad=True)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    loss.distance(made, images).sum().backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert images.grad is None


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(random_state("vgg11"), path)
    with pytest.raises(CheckpointError, match=r"VGG-16 of loss 'lpips'.*features\.\d+\.\w+ is"):
        LpipsLossConfig(name="lpips", weights=str(path)).build()


def test_a_file_that_is_missing_or_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        LpipsLossConfig(name="lpips", weights=str(tmp_path / "none.pth")).fetch()
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        LpipsLossConfig(name="lpips", weights=str(tmp_path / "text.pth")).build()


def test_offline_says_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FetchError, match=r"rpiae fetch lpips.*pivot-perceptual"):
        LpipsLossConfig(name="lpips").fetch()


def test_images_too_small_for_five_blocks() -> None:
    with pytest.raises(UsageError, match=r"at least 16 pixels a side, not 8×32"):
        LpipsLoss().distance(torch.rand(1, 3, 8, 32), torch.rand(1, 3, 8, 32))

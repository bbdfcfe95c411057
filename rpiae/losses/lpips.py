"""LPIPS: distance in the features of a VGG-16, weighted by people's judgement of likeness."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import vgg16

from rpiae.core.errors import FetchError, UsageError
from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import StepContext
from rpiae.core.model.folding import fold
from rpiae.core.model.geometry import at_least_fp32
from rpiae.core.runtime.download import cached_name, fetch_url, unfetched
from rpiae.core.runtime.weight_files import named_file
from rpiae.core.runtime.weights import load_whole, read_weights

#: Channels of VGG-16's blocks; features are taken at the end of each.
WIDTHS = (64, 128, 256, 512, 512)

#: ImageNet statistics, for images in [−1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

#: VGG-16 halves an image four times before its last features.
LEAST_SIDE = 16

#: torchvision's weights, trained on ImageNet-1K.
URL = "https://download.pytorch.org/models/vgg16-397923af.pth"


class LpipsLoss(nn.Module):
    """LPIPS of the reconstruction and the image, with VGG-16 features.

    Both, scaled to [−1, 1], pass through VGG-16; the features after each of its five blocks are
    normalised to unit length per position, and their squared differences are weighted per channel
    and averaged over positions.

    Args:
        backbone: state of a torchvision VGG-16; random weights where not given.
        heads: the learned channel weights, ``lin0.model.1.weight`` to ``lin4.model.1.weight``;
            all one where not given.

    Source: arXiv 1801.03924, version 0.1 of its weights.

    Raises:
        CheckpointError: if a state is of another architecture.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        backbone: Mapping[str, Tensor] | None = None,
        heads: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.vgg = nn.ModuleDict({"features": _convolutions()})
        self.heads = nn.ParameterList(torch.ones(1, width, 1, 1) for width in WIDTHS)
        if backbone is not None:
            load_whole(
                self.vgg, backbone, source="the VGG-16 of loss 'lpips'", unused=("classifier.",)
            )
        if heads is not None:
            called = {str(number): f"lin{number}.model.1.weight" for number in range(len(WIDTHS))}
            own = {theirs: name for name, theirs in called.items()}
            load_whole(
                self.heads, {own.get(name, name): value for name, value in heads.items()},
                source="the channel weights of loss 'lpips'", called=called,
            )  # fmt: skip
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))

    def forward(self, context: StepContext) -> Float[Tensor, ""]:
        """Mean LPIPS of a step's reconstructions."""
        assert context.reconstruction is not None
        return self.distance(context.reconstruction, context.images).mean()

    def distance(
        self, made: Float[Tensor, "b 3 ..."], images: Float[Tensor, "b 3 ..."]
    ) -> Float[Tensor, " b"]:
        """LPIPS of pairs of images in [0, 1], or mean of clips' frames; gradients pass to ``made``."""
        if min(images.shape[-2:]) < LEAST_SIDE:
            raise UsageError(
                f"loss 'lpips' needs images of at least {LEAST_SIDE} pixels a side, not "
                f"{images.shape[-2]}×{images.shape[-1]}: raise data.image_size, or --without lpips"
            )
        with torch.no_grad():
            wanted = self._features(fold(as_clip(images)))
        found = self._features(fold(as_clip(made)))
        total = at_least_fp32(made.new_zeros(len(found[0])))
        for head, ours, theirs in zip(self.heads, found, wanted, strict=True):
            difference = (_unit(ours) - _unit(theirs)).square()
            total = total + (difference * head).sum(1).mean((1, 2))
        return total.view(len(made), -1).mean(1)

    def _features(self, images: Tensor) -> list[Tensor]:
        tensor = (2 * images.to(self.shift.dtype) - 1 - self.shift) / self.scale
        ends = []
        for layer in self.vgg["features"].children():
            if isinstance(layer, nn.MaxPool2d):
                ends.append(tensor)
            tensor = layer(tensor)
        return [*ends, tensor]


def packaged_heads() -> Path:
    """The learned channel weights, which torchmetrics ships.

    Raises:
        FetchError: if its distribution lacks them.
    """
    spec = importlib.util.find_spec("torchmetrics")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "functional", "image", "lpips_models", "vgg.pth")
        if path.is_file():
            return path
    raise FetchError(
        "the channel weights of LPIPS, which torchmetrics ships, are missing: reinstall it with "
        "pip install --force-reinstall torchmetrics"
    )


def vgg_weights(path: str) -> Path:
    """A local VGG-16 file: the named one, or torchvision's, downloaded on first use.

    Raises:
        CheckpointError: if the named file does not exist.
        FetchError: if it cannot be downloaded.
    """
    if path:
        return named_file(path, owner="loss 'lpips'")
    try:
        return fetch_url(URL)
    except FetchError as error:
        ways_out = (
            "run `rpiae fetch lpips` on a machine with network and copy its cache (TORCH_HOME), or "
            f"put that file at {cached_name(URL)}; name a local file with loss.weights; leave the "
            "term out with --without lpips; or take loss pivot-perceptual, which needs no download."
        )
        raise unfetched("loss 'lpips'", URL, error, ways_out=ways_out) from None


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a VGG-16 file of torchvision, or of one with LPIPS' channel weights.

    Raises:
        CheckpointError: if it is neither.
    """
    signatures = (("features.0.weight",), ("lin0.model.1.weight",))
    return read_weights(path, what="torchvision's VGG-16", signatures=signatures)


def _convolutions() -> nn.Sequential:
    """torchvision's VGG-16 up to its last features, with random weights."""
    with torch.device("meta"):  # its classifier would be most of the memory
        layers = vgg16(weights=None).features[:-1]
    assert isinstance(layers, nn.Sequential)
    layers.to_empty(device=torch.get_default_device())
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return layers


def _unit(features: Tensor) -> Tensor:
    features = at_least_fp32(features)
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)

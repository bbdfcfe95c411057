"""LPIPS: distance in the features of a VGG-16, weighted by people's judgement of likeness."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.contracts import StepContext
from rpiae.core.errors import CheckpointError, FetchError, UsageError
from rpiae.core.shapes import at_least_fp32

#: Channels of VGG-16's convolutions, block by block; features are taken at the end of each block.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

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
        self.blocks = nn.ModuleList()
        channels, position = 3, 0
        for number, widths in enumerate(BLOCKS):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
            position += len(layers)
            for width in widths:
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                if backbone is not None:
                    _load(convolution, backbone, position)
                layers += [convolution, nn.ReLU()]
                channels, position = width, position + 2
            self.blocks.append(nn.Sequential(*layers))
        self.heads = nn.ParameterList(
            _head(heads, number, widths[-1]) for number, widths in enumerate(BLOCKS)
        )
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))

    def forward(self, context: StepContext) -> Float[Tensor, ""]:
        """Mean LPIPS of a step's reconstructions."""
        assert context.reconstruction is not None
        return self.distance(context.reconstruction, context.images).mean()

    def distance(
        self, made: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """LPIPS of pairs of images in [0, 1]; gradients pass to ``made``."""
        if min(images.shape[-2:]) < LEAST_SIDE:
            raise UsageError(
                f"loss 'lpips' needs images of at least {LEAST_SIDE} pixels a side, not "
                f"{images.shape[-2]}×{images.shape[-1]}: raise data.image_size, or --without lpips"
            )
        with torch.no_grad():
            wanted = self._features(images)
        total = at_least_fp32(made.new_zeros(made.shape[0]))
        for head, found, other in zip(self.heads, self._features(made), wanted, strict=True):
            difference = (_unit(found) - _unit(other)).square()
            total = total + (difference * head).sum(1).mean((1, 2))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        tensor = (2 * images.to(self.shift.dtype) - 1 - self.shift) / self.scale
        found = []
        for block in self.blocks:
            tensor = block(tensor)
            found.append(tensor)
        return found


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
        found = Path(path).expanduser()
        if not found.is_file():
            raise CheckpointError(f"weights of loss 'lpips': there is no file {found}")
        return found
    cached = Path(torch.hub.get_dir(), "checkpoints", URL.rpartition("/")[2])
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(cached), hash_prefix="397923af")
        except (OSError, RuntimeError) as error:
            raise FetchError(
                f"the VGG-16 weights of loss 'lpips' could not be fetched from {URL} ({error}). "
                "Ways out: run `rpiae fetch lpips` on a machine with network and copy "
                f"{cached}; name a local file with loss.weights; leave the term out with "
                "--without lpips; or take loss pivot-perceptual, which needs no download."
            ) from None
    return cached


def read_state(path: Path) -> dict[str, Tensor]:
    """A torch state file; no code is run from it.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle's errors, which share no useful base
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(f"{path} cannot be read as weights: {first}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no weights by name")
    return state


def _load(convolution: nn.Conv2d, state: Mapping[str, Tensor], position: int) -> None:
    for name, parameter in convolution.named_parameters():
        found = state.get(f"features.{position}.{name}")
        if found is None or found.shape != parameter.shape:
            given = "is missing" if found is None else f"is {tuple(found.shape)}"
            raise CheckpointError(
                f"the weights of loss 'lpips' are not a VGG-16's: features.{position}.{name} "
                f"{given}, expected {tuple(parameter.shape)}"
            )
        parameter.data.copy_(found)


def _head(state: Mapping[str, Tensor] | None, number: int, channels: int) -> nn.Parameter:
    weight = torch.ones(1, channels, 1, 1)
    if state is not None:
        found = state.get(f"lin{number}.model.1.weight")
        if found is None or found.shape != weight.shape:
            raise CheckpointError(
                f"the channel weights of loss 'lpips' have no lin{number}.model.1.weight of "
                f"{channels} channels"
            )
        weight = found.float()
    return nn.Parameter(weight)


def _unit(features: Tensor) -> Tensor:
    features = at_least_fp32(features)
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)

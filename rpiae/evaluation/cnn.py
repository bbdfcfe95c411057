"""A small convolutional classifier: a feature space that owes nothing to vision transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.runtime.files import whole
from rpiae.core.runtime.weight_files import named_file, read_safetensors
from rpiae.core.runtime.weights import check_finite
from rpiae.core.training.checkpoint import digest

FORMAT = "rpiae-small-cnn-1"

#: The network halves an image three times.
LEAST_SIDE = 8

#: Who writes the files.
MAKER = "scripts/train_small_cnn.py trains a small CNN and writes its file"


@frozen(kw_only=True)
class CnnFacts:
    """What a classifier's file says of it.

    Attributes:
        widths: channels at 1/2, 1/4 and 1/8 of the image's side.
        classes: that it tells apart.
        accuracy: share of the test images that it gets right, in [0, 1].
        seed: of its training.
        training: what it was trained on and how, in words.
        weights_sha256: ``digest`` of its state.
    """

    widths: tuple[int, int, int]
    classes: int
    accuracy: float
    seed: int
    training: str
    weights_sha256: str


class SmallCnn(nn.Module):
    """A residual convolutional network for small colour images of any size from 8×8.

    Three levels at 1/2, 1/4 and 1/8 of the side, each a strided convolution and a residual pair of
    convolutions, then the mean over positions and a linear classifier. There is no normalisation:
    the script that trains it folds batch norm into the convolutions.

    Args:
        widths: channels of the levels; the last is the features' dimension.
        classes: of the classifier.

    Source: after the residual networks for CIFAR of arXiv 1512.03385, section 4.2; fewer blocks, and
    a first convolution of 4×4 pixels and stride 2.
    """

    def __init__(self, *, widths: tuple[int, int, int] = (32, 64, 128), classes: int = 10) -> None:
        super().__init__()
        self.widths = widths
        self.levels = nn.Sequential(
            *(
                _Level(channels, width, kernel=kernel)
                for channels, width, kernel in zip(
                    (3, *widths[:-1]), widths, (4, 3, 3), strict=True
                )
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    @property
    def dimensions(self) -> int:
        """Of the features."""
        return self.widths[-1]

    @property
    def classes(self) -> int:
        """That the classifier tells apart."""
        return self.head.out_features

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """What the classifier sees of images in [0, 1]; never negative.

        Raises:
            UsageError: if a side is shorter than 8 pixels.
        """
        if min(images.shape[-2:]) < LEAST_SIDE:
            raise UsageError(
                f"the small CNN needs images of at least {LEAST_SIDE} pixels a side, not "
                f"{images.shape[-2]}×{images.shape[-1]}"
            )
        scaled = ((images - 0.5) * 4).contiguous(memory_format=torch.channels_last)
        found: Tensor = self.levels(scaled)
        return found.float().mean((2, 3))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits for images in [0, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class _Level(nn.Module):
    """Half the side, then a residual pair of convolutions."""

    def __init__(self, channels: int, width: int, *, kernel: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, kernel, stride=2, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, tensor: Tensor) -> Tensor:
        tensor = self.reduce(tensor).relu()
        found: Tensor = tensor + self.second(self.first(tensor).relu()).relu()
        return found


def save_cnn(model: SmallCnn, path: Path, *, accuracy: float, seed: int, training: str) -> CnnFacts:
    """Write a classifier as safetensors, with its facts as metadata; returns them.

    Args:
        model: without batch norm.
        path: the file; replaced where it exists.
        accuracy: on test images, in [0, 1].
        seed: of the training.
        training: the data and the training in words.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    facts = CnnFacts(
        widths=model.widths, classes=model.classes, accuracy=accuracy, seed=seed,
        training=training, weights_sha256=digest(state),
    )  # fmt: skip
    metadata = {
        "format": FORMAT,
        "widths": " ".join(map(str, facts.widths)),
        "classes": str(facts.classes),
        "accuracy": repr(facts.accuracy),
        "seed": str(facts.seed),
        "training": facts.training,
        "weights_sha256": facts.weights_sha256,
    }
    with whole(path) as unfinished:
        save_file(state, unfinished, metadata=metadata)
    return facts


def cnn_file(path: Path) -> Path:
    """Where a classifier's file lies.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        return named_file(str(path), owner="feature space 'cnn'")
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {MAKER}") from None


def read_cnn(path: Path) -> tuple[SmallCnn, CnnFacts]:
    """A classifier in eval mode, without gradients, and its facts.

    Raises:
        CheckpointError: if the file is missing, damaged or of something else.
    """
    path = cnn_file(path)
    try:
        state, metadata = read_safetensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {MAKER}") from None
    facts = _facts(metadata, path)
    if digest(state) != facts.weights_sha256:
        raise CheckpointError(f"{path} is damaged: its weights are not those that were written")
    with torch.device("meta"):
        model = SmallCnn(widths=facts.widths, classes=facts.classes)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != wanted:
        raise CheckpointError(
            f"{path} holds weights of another architecture than a small CNN of widths "
            f"{facts.widths} and {facts.classes} classes"
        )
    for name, value in state.items():
        check_finite(path, name, value)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval(), facts


def _facts(metadata: Mapping[str, Any], path: Path) -> CnnFacts:
    found = metadata.get("format")
    if found != FORMAT:
        given = f"its format is {found!r}" if found else "it names no format"
        raise CheckpointError(f"{path} is no small CNN: {given}, expected {FORMAT!r}")
    try:
        first, second, third = (int(width) for width in metadata["widths"].split())
        return CnnFacts(
            widths=(first, second, third),
            classes=int(metadata["classes"]),
            accuracy=float(metadata["accuracy"]),
            seed=int(metadata["seed"]),
            training=metadata["training"],
            weights_sha256=metadata["weights_sha256"],
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata do not fit ({error})") from None

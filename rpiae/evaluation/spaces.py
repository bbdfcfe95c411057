"""Feature spaces: images in, vectors out, for Fréchet distances and the like."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.config.tree import unparse
from rpiae.core.errors import (
    CheckpointError,
    FetchError,
    MissingExtraError,
    UnknownNameError,
    UsageError,
    did_you_mean,
)
from rpiae.core.model.geometry import to_8_bits
from rpiae.core.model.resolve import part_config
from rpiae.core.registry.entries import normalised
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.download import cached_name, fetch_url, unfetched
from rpiae.core.runtime.files import file_digest
from rpiae.core.runtime.weight_files import named_file
from rpiae.core.runtime.weights import check_finite, read_weights
from rpiae.core.training.checkpoint import digest
from rpiae.evaluation.cnn import SmallCnn, cnn_file, read_cnn
from rpiae.tasks.tokenizer.replica import PivotReplica

#: The FID Inception-v3 as torch-fidelity publishes it; the hexadecimal digits begin its SHA-256.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)

#: Spaces that are no encoders, and how they are written.
FORMS: Mapping[str, str] = {"cnn": "cnn:PATH", "inception": "inception or inception:PATH"}


@runtime_checkable
class FeatureSpace(Protocol):
    """Turns images into vectors; a vector does not depend on the other images of its batch.

    Attributes:
        name: what results are labelled with.
        dimensions: of a vector (d).
        facts: what it is made of, as plain values for JSON: ``extractor``, its config or architecture,
            ``layer``, ``input`` in words, ``weights_sha256``, versions of libraries.
    """

    name: str
    dimensions: int
    facts: Mapping[str, Any]

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; returns the space itself."""

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of images in [0, 1], in fp32 and without gradients, where the weights are."""


def feature_space(text: str) -> FeatureSpace:
    """A feature space by name.

    Args:
        text: an encoder (``tiny``, ``dinov2-b``, ``timm:vit_small_patch16_224``), ``inception``,
            ``inception:PATH`` or ``cnn:PATH``.

    Raises:
        UnknownNameError: with the nearest names.
        UsageError: if ``cnn`` or ``inception:`` lacks its path, or an encoder has no weights.
        MissingExtraError: if the library behind it is not installed.
        FetchError: if its weights cannot be had.
        CheckpointError: if its file is missing, damaged or of something else.
    """
    kind, source = _parsed(text)
    if isinstance(source, EncoderConfig):
        return EncoderSpace(text, source)
    if kind == "cnn":
        return CnnSpace(Path(source))
    return InceptionSpace(Path(source) if source else None)


def space_weights(text: str) -> Path | None:
    """Make what a feature space loads available locally; the path of it.

    Args:
        text: see ``feature_space``.

    Raises:
        UnknownNameError, UsageError: as ``feature_space``.
        FetchError: if it cannot be had.
        CheckpointError: if a named file is not there.
    """
    kind, source = _parsed(text)
    if isinstance(source, EncoderConfig):
        return source.fetch()
    return cnn_file(Path(source)) if kind == "cnn" else inception_weights(source)


def _parsed(text: str) -> tuple[str, EncoderConfig | str]:
    """A space's kind, and its encoder or its file; an empty text where it needs none."""
    head, colon, path = text.partition(":")
    kind = normalised(head)
    if (kind == "inception" and colon and not path) or (kind == "cnn" and not path):
        raise UsageError(f"feature space {text!r} lacks a file: write {FORMS[kind]}")
    if kind in FORMS:
        return kind, path
    encoders = registry("encoders")
    try:
        encoders.select(text)
    except UnknownNameError:
        names = encoders.names()
        if kind in names:  # a part that takes no argument: the registry's message says so
            raise
        hint = did_you_mean(kind, [*(re.sub(r"\{.*\}", "64", name) for name in names), *FORMS])
        raise UnknownNameError(
            f"no feature space named {head!r}.{hint} There are {FORMS['inception']}, "
            f"{FORMS['cnn']}, and all encoders: rpiae list encoders"
        ) from None
    config = part_config("encoders", text)
    assert isinstance(config, EncoderConfig)
    return "encoder", config


class EncoderSpace:
    """Mean over the patch tokens of a pretrained encoder.

    Images are padded and resized as [`PivotReplica`][rpiae.core.training.objective.PivotReplica] does, with the
    encoder's own output patch; ``weights_sha256`` is [`digest`][rpiae.core.training.checkpoint.digest] of the
    encoder's state.

    Args:
        name: of the space.
        config: the encoder's; its weights are loaded whatever ``pretrained`` says.

    Attributes:
        frames: per token; 1 for an encoder of images.

    Raises:
        UsageError: if the encoder names no weights.
        FetchError: if they cannot be had.
        CheckpointError: if they do not fit.
    """

    def __init__(self, name: str, config: EncoderConfig) -> None:
        described = config.describe()
        with torch.random.fork_rng(devices=[]):
            encoder = config.build()
        config.load_pretrained(encoder)
        self.name = name
        self.dimensions: int = described.width
        self.frames = described.frames
        self._encoder = encoder.float()
        self._output_patch = (described.frames, described.output_patch, described.output_patch)
        self._replica = PivotReplica(self._encoder, output_patch=self._output_patch)
        classes = {type(module) for module in self._encoder.modules()}
        packages = sorted({cls.__module__.partition(".")[0] for cls in classes})
        self.facts: Mapping[str, Any] = {
            "extractor": "encoder",
            "config": unparse(config),
            "layer": "mean over the patch tokens of the encoder's output",
            "input": (
                f"padded by reflection to multiples of {described.output_patch} pixels, resized (bicubic) "
                f"to {described.patch} pixels per {described.output_patch}, normalised with the encoder's "
                "mean and standard deviation"
            ),
            "weights_sha256": digest(self._encoder.state_dict()),
            "versions": _versions(*packages),
        }

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; returns the space itself."""
        self._encoder.to(device)
        self._replica = PivotReplica(self._encoder, output_patch=self._output_patch)
        return self

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 ..."]) -> Float[Tensor, "b d"]:
        """Vectors of images in [0, 1] of any size, or of clips."""
        device = next(self._encoder.parameters()).device
        with torch.autocast(device.type, enabled=False):
            tokens = self._replica.features(images.to(device, torch.float32)).tokens
            return tokens.float().mean(1)


class InceptionNetwork:
    """A layer of the Inception-v3 of 2015 that FID is defined on, by torch-fidelity.

    Args:
        weights: a file of torch-fidelity's Inception-v3; downloaded where empty (TORCH_HOME).
        layer: what it gives, by torch-fidelity's name.

    Attributes:
        file: the weights file.

    Raises:
        MissingExtraError: if torch-fidelity is not installed.
        FetchError: if the weights cannot be downloaded.
        CheckpointError: if the file is missing or no such network's.
    """

    def __init__(self, weights: str, *, layer: str) -> None:
        if importlib.util.find_spec("torch_fidelity") is None:
            raise MissingExtraError(
                "FID's Inception-v3 needs torch-fidelity, which is not installed: "
                'pip install "rpiae[fid]"'
            )
        self.file = inception_weights(weights)
        self._network = _inception(self.file, layer)
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> None:
        """Move the weights."""
        self._device = torch.device(device)
        self._network.to(self._device)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The layer for images in [0, 1] of any size."""
        bytes_ = (to_8_bits(images.to(self._device, torch.float32)) * 255).round().to(torch.uint8)
        with torch.autocast(self._device.type, enabled=False):
            (values,) = self._network(bytes_)
        found: Tensor = values.float()
        return found


class InceptionSpace:
    """The features that FID is defined on: pool3 of the Inception-v3 of 2015, by torch-fidelity.

    ``weights_sha256`` is that of the weights file.

    Args:
        path: a file of torch-fidelity's Inception-v3; downloaded where None (TORCH_HOME).

    Source: arXiv 1706.08500; https://github.com/toshas/torch-fidelity.

    Raises:
        MissingExtraError, FetchError, CheckpointError: see ``InceptionNetwork``.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._network = InceptionNetwork(str(path or ""), layer="2048")
        self.name = "inception"
        self.dimensions = 2048
        self.facts: Mapping[str, Any] = {
            "extractor": "Inception-v3 of 2015-12-05 (FID), by torch-fidelity",
            "layer": "pool3, 2048 values",
            "input": (
                "rounded to 8 bits, resized to 299×299 with TensorFlow 1's bilinear rule, scaled to "
                "[−1, 1)"
            ),
            "weights_sha256": file_digest(self._network.file),
            "versions": _versions("torch", "torch-fidelity"),
        }

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; returns the space itself."""
        self._network.to(device)
        return self

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of images in [0, 1] of any size."""
        return self._network(images)


class CnnSpace:
    """Mean over positions of the last features of a small convolutional classifier.

    ``weights_sha256`` is [`digest`][rpiae.core.training.checkpoint.digest] of its state.

    Args:
        path: a file that ``scripts/train_small_cnn.py`` wrote.

    Raises:
        CheckpointError: if it is missing, damaged or of something else.
    """

    def __init__(self, path: Path) -> None:
        self._model, found = read_cnn(path)
        self.name = "cnn"
        self.dimensions = self._model.dimensions
        self.facts: Mapping[str, Any] = {
            "extractor": "small residual CNN, a classifier",
            "architecture": {
                "class": f"{SmallCnn.__module__}:{SmallCnn.__name__}",
                "widths": list(found.widths),
                "classes": found.classes,
            },
            "training": found.training,
            "accuracy": found.accuracy,
            "seed": found.seed,
            "layer": f"mean over positions of the last level, {self.dimensions} values",
            "input": "at its own size, scaled from [0, 1] to [−2, 2]",
            "weights_sha256": found.weights_sha256,
            "versions": _versions("torch", "rpiae"),
        }

    def to(self, device: torch.device | str) -> Self:
        """Move the weights; returns the space itself."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of images in [0, 1] of at least 8×8 pixels."""
        device = next(self._model.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return self._model.features(images.to(device, torch.float32))


def _inception(path: Path, layer: str) -> Any:
    """torch-fidelity's network with the weights of a file, from which no code is run."""
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    # The library reads its file in a way that would run code from it: it gets a copy of the tensors.
    copy = io.BytesIO()
    state = read_weights(
        path, what="torch-fidelity's Inception-v3", signatures=(("Conv2d_1a_3x3.conv.weight",),)
    )
    for name, value in state.items():
        check_finite(path, name, value)
    torch.save(state, copy)
    copy.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):
            network = module.FeatureExtractorInceptionV3("inception", [layer], copy)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(
            f"{path} holds weights of another architecture than torch-fidelity's Inception-v3: "
            f"{lines[min(1, len(lines) - 1)][:200]}"
        ) from None
    return network.requires_grad_(False).eval()  # 0.3.0 leaves it in training mode


def inception_weights(path: str) -> Path:
    """A local Inception file: the named one, or torch-fidelity's, downloaded on first use.

    Raises:
        CheckpointError: if the named file does not exist.
        FetchError: if it cannot be downloaded.
    """
    if path:
        return named_file(path, owner="feature space 'inception'")
    try:
        return fetch_url(INCEPTION_URL)
    except FetchError as error:
        ways_out = (
            "download that file on a machine with network and name it as inception:PATH, or put it "
            f"at {cached_name(INCEPTION_URL)}; or take another space, such as an encoder's (rpiae "
            "list encoders)."
        )
        raise unfetched(
            "feature space 'inception'", INCEPTION_URL, error, ways_out=ways_out
        ) from None


def _versions(*packages: str) -> dict[str, str]:
    """Versions of packages by distribution; what is no installed distribution's is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # open_clip is of open_clip_torch
            for name in importlib.metadata.packages_distributions().get(package, []):
                found[name] = importlib.metadata.version(name)
    return found

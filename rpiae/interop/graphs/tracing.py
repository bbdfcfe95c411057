"""A tokenizer's two halves as graphs of torch.export: images → latent, and latent → images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from attrs import frozen
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rpiae.core.errors import RunError, UsageError
from rpiae.core.model.one_pass import MOST_TOKENS
from rpiae.core.model.temporal import TemporalBridge, TemporalDecoder
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.names import printable
from rpiae.interop.graphs.constants import fold_constants

#: Images per batch that a graph of torch.export takes at most.
MOST_IMAGES = 1024

#: Latent positions per side, where it varies: torch.export takes one for a constant.
LEAST_POSITIONS, MOST_POSITIONS = 2, 256

#: Largest difference between a graph and the model that is accepted, as a share of the largest value
#: (1, where that is less), by what both compute in.
TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2,
}  # fmt: skip

#: Rows and columns of latent positions that dynamic graphs are traced and compared with.
_EXAMPLE, _OTHERS = (3, 5), ((2, 7), (6, 2))

#: What messages advise where sides vary.
WAY_OUT = ". Export one fixed size instead: --size H W"

Sides = tuple[int, int]


@frozen(kw_only=True)
class Sizes:
    """The images that graphs are for.

    Attributes:
        unit: pixels per latent position and side; sides that vary are multiples of it.
        fixed: (H, W), the only size; None where sides vary.
    """

    unit: int
    fixed: Sides | None


@frozen(kw_only=True)
class Graph:
    """One half of a tokenizer, traced.

    Attributes:
        name: ``encoder`` (with the bridge's encoder) or ``decoder`` (with the bridge's).
        program: the graph.
        model: the half itself, which takes and gives the same.
        shapes: of its input and its outputs by name, the input first; words stand for what varies.
        trials: inputs that it is compared with the model on.
    """

    name: str
    program: ExportedProgram
    model: nn.Module
    shapes: Mapping[str, tuple[int | str, ...]]
    trials: tuple[Tensor, ...]

    @property
    def way_out(self) -> str:
        """What messages advise where sides vary."""
        return WAY_OUT if "rows" in str(self.shapes) else ""

    def check(
        self, run: Callable[[Tensor], Sequence[Tensor]], what: str, tolerance: float
    ) -> float:
        """Compare with the model what was made of the graph.

        Args:
            run: input → outputs.
            what: the file, for messages.
            tolerance: see ``TOLERANCES``.

        Returns:
            The largest difference found, as a share of the largest value (1, where that is less).

        Raises:
            RunError: if it is larger than ``tolerance``, or an input cannot be run.
        """
        found = []
        for trial in self.trials:
            with torch.no_grad():
                wanted = self.model(trial)
            try:
                outputs = run(trial)
            except Exception as error:  # of torch or onnxruntime, each in its own ways
                raise RunError(
                    f"{what} does not run on other sizes than it was traced with, which a part keeps "
                    f"as a constant: {reason_of(error)}{self.way_out}"
                ) from error
            for made, value in zip(outputs, wanted, strict=True):
                scale = max(1.0, value.abs().max().item())
                found.append((made - value).abs().max() / scale)
        largest = torch.stack(found).max().item()  # not a number, where one is none
        if not largest <= tolerance:
            raise RunError(
                f"{what} differs from the tokenizer by {largest:.2g} of its largest value, and "
                f"{tolerance:g} is accepted: nothing was written"
            )
        return largest


class EncoderGraph(nn.Module):
    """Images (b, 3, H, W) in [0, 1] → the posterior's mode (b, C, h, w) and, of a Gaussian, logvar."""

    def __init__(self, tokenizer: RPiAE) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        posterior = self.tokenizer.encode(images)
        latent = posterior.mode().float()
        if not self.tokenizer.bridge.gaussian:
            return (latent,)
        return latent, posterior.logvar.float()  # type: ignore[attr-defined]  # bridges say whether they are Gaussian


class DecoderGraph(nn.Module):
    """Latents (b, C, h, w) → images (b, 3, H, W), not clamped; of ``size``, where it is given."""

    def __init__(self, tokenizer: RPiAE, size: Sides | None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.size = size

    def forward(self, latent: Float[Tensor, "b c h w"]) -> tuple[Tensor]:
        return (self.tokenizer.decode(latent, size=self.size).float(),)


def sizes_of(model: RPiAE, *, size: Sides | None, dynamic: bool) -> Sizes:
    """The sizes that graphs of a tokenizer are made for.

    Args:
        model: the tokenizer.
        size: (H, W) of the images; where it is not given, that of the training crops.
        dynamic: whether sides vary instead.

    Raises:
        UsageError: if both are given, no size is known, or the tokenizer cannot be traced for it.
    """
    _check_images(model)
    if dynamic and size is not None:
        raise UsageError("a graph has one size or dynamic sides: leave one of them out")
    unit = model.decoder.patch[1] * model.bridge.downsampling
    stored = None if model.feature_mean is None else tuple(model.feature_mean.shape[-2:])
    if dynamic:
        if stored not in (None, (1, 1)):
            raise UsageError(
                f"its feature_norm is of a grid of {stored[0]}×{stored[1]} tokens, so its images have "
                "one size: give it instead of dynamic sides"
            )
        return Sizes(unit=unit, fixed=None)
    if size is None:
        if not model.trained_size:
            raise UsageError(
                "it is not known what size this tokenizer was trained on: give the images' size, "
                "height and width, or have dynamic sides"
            )
        size = (model.trained_size, model.trained_size)
    _, rows, columns = model.geometry(*size).grid
    if rows * columns > MOST_TOKENS:
        raise UsageError(
            f"images of {size[0]}×{size[1]} pixels are {rows * columns:,} tokens; more than "
            f"{MOST_TOKENS:,} in one pass are refused: export a smaller size, for tiles"
        )
    if stored not in (None, (1, 1), (rows, columns)):
        high, wide = (
            side * pixels for side, pixels in zip(stored, model.decoder.patch[1:], strict=True)
        )
        raise UsageError(
            f"its feature_norm is of a grid of {stored[0]}×{stored[1]} tokens, and images of "
            f"{size[0]}×{size[1]} pixels have {rows}×{columns}: {high}×{wide} is a size that fits"
        )
    return Sizes(unit=unit, fixed=size)


def graphs(model: RPiAE, sizes: Sizes) -> Iterator[Graph]:
    """The encoder's and the decoder's graph of a tokenizer, one after the other.

    Padding, resizing and normalising of images lie in the encoder's graph; the latent is raw, before any
    latent_norm. Whatever they compute in, graphs take and give float32. The batch varies.

    Args:
        model: a tokenizer of images, in eval mode, on the CPU.
        sizes: what ``sizes_of`` gave for it.

    Raises:
        RunError: if torch.export fails on a part.
    """
    draws = torch.Generator().manual_seed(0)
    unit, fixed, channels = sizes.unit, sizes.fixed, model.bridge.latent_channels
    grid = _latent_sides(model, fixed) if fixed else _EXAMPLE
    trials = [(1, grid), (3, grid)] if fixed else [(1 + i, each) for i, each in enumerate(_OTHERS)]
    if fixed is None and model.trained_size:
        usual = _latent_sides(model, (model.trained_size, model.trained_size))
        trials += [(1, usual)] if min(usual) >= LEAST_POSITIONS else []
    varying = ("batch", *(grid if fixed else ("rows", "columns")))
    latent = (varying[0], channels, *varying[1:])
    pixels = fixed or (f"{unit}*rows", f"{unit}*columns")
    images = ("batch", 3, *pixels)
    outputs = ("latent", "logvar") if model.bridge.gaussian else ("latent",)

    def drawn(batch: int, sides: Sides, of_images: bool) -> Tensor:
        if of_images:
            sides = fixed or (sides[0] * unit, sides[1] * unit)
            return torch.rand(batch, 3, *sides, generator=draws)
        return torch.randn(batch, channels, *sides, generator=draws)

    halves: list[tuple[str, nn.Module, dict[str, tuple[int | str, ...]]]] = [
        ("encoder", EncoderGraph(model), {"images": images, **dict.fromkeys(outputs, latent)}),
        ("decoder", DecoderGraph(model, fixed), {"latent": latent, "images": images}),
    ]
    for name, half, shapes in halves:
        first = name == "encoder"
        program = _traced(name, half, drawn(2, grid, first), unit if first else 1, fixed)
        inputs = tuple(drawn(batch, sides, first) for batch, sides in trials)
        yield Graph(name=name, program=program, model=half, shapes=shapes, trials=inputs)


def reason_of(error: Exception) -> str:
    """The first line of a library's error."""
    lines = str(error).splitlines() or [""]
    return printable(lines[0])[:300].rstrip(".") or type(error).__name__


def _latent_sides(model: RPiAE, size: Sides) -> Sides:
    _, rows, columns = model.geometry(*size).grid
    return rows // model.bridge.downsampling, columns // model.bridge.downsampling


def _traced(
    name: str, half: nn.Module, example: Tensor, unit: int, fixed: Sides | None
) -> ExportedProgram:
    """A half as a graph, what depends on no input computed."""
    varying = {0: Dim("batch", min=1, max=MOST_IMAGES)}
    if fixed is None:
        for side, word in ((2, "rows"), (3, "columns")):
            varying[side] = unit * Dim(word, min=LEAST_POSITIONS, max=MOST_POSITIONS)
    try:
        with torch.no_grad():
            program = torch.export.export(half, (example,), dynamic_shapes=(varying,))
    except Exception as error:  # it fails in many ways, on what a part does
        instead = "" if fixed else WAY_OUT
        raise RunError(
            f"torch.export cannot trace the {name}: {reason_of(error)}{instead}"
        ) from error
    fold_constants(program)
    return program


def _check_images(model: RPiAE) -> None:
    """Refuse a tokenizer of videos."""
    videos = {
        "encoder": model.encoder.patch[0] > 1,
        "bridge": isinstance(model.bridge, TemporalBridge),
        "decoder": isinstance(model.decoder, TemporalDecoder),
    }
    if any(videos.values()):
        roles = " and ".join(role for role, is_of_videos in videos.items() if is_of_videos)
        raise UsageError(
            f"graphs are of images, and this tokenizer's {roles} works along time: export a tokenizer "
            "of images"
        )

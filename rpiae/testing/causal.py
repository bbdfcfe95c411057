"""Checks of what parts for videos promise about time, see ``rpiae.core.model.temporal``.

They hold with any weights. New parts often begin as nothing along time, where every promise is kept, so
the parts are tried with all their weights moved at random.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from rpiae.core.model.contracts import Features
from rpiae.core.model.temporal import Past, TemporalBridge, TemporalDecoder

#: How far all weights are moved, in standard deviations of a standard normal.
MOVED = 0.05

#: Rounding aside, what two ways to the same must agree to.
CLOSE = 1e-4

#: Groups of steps after the first step, in the clip that a bridge is tried on.
GROUPS = 4


class Run(Protocol):
    """One way through a part."""

    def __call__(self, values: Tensor, past: Past, /) -> Tensor: ...


@torch.no_grad()
def check_causal_bridge(bridge: TemporalBridge) -> None:
    """1 + k·T steps give 1 + k latents and come back as many; no latent depends on later groups, no
    step on later latents; a clip in pieces gives what it gives whole; its first step is an image.

    Raises:
        AssertionError: with what is wrong.
    """
    assert isinstance(bridge, nn.Module)
    _move(bridge)
    every, side = bridge.temporal_downsampling, bridge.downsampling
    place = (side, 2 * side)
    tokens = torch.randn(2, 1 + GROUPS * every, 2 * side**2, bridge.features)

    def encoded(steps: Tensor, past: Past | None = None) -> Tensor:
        return bridge.encode(_features(steps, place), past).mode()

    def decoded(latents: Tensor, past: Past | None = None) -> Tensor:
        features = bridge.decode(latents, past)
        return features.tokens.view(len(latents), -1, *tokens.shape[2:])

    for groups in range(GROUPS + 1):
        steps = 1 + groups * every
        latent = encoded(tokens[:, :steps])
        assert latent.shape[2] == 1 + groups, (
            f"{steps} steps with temporal_downsampling {every} give {latent.shape[2]} latents, not "
            f"{1 + groups}"
        )
        back = decoded(latent).shape[1]
        assert back == steps, f"{1 + groups} latents come back as {back} steps, not {steps}"
    whole = decoded(latent)
    for group in range(1, GROUPS + 1):
        first = 1 + (group - 1) * every
        for step in range(first, first + every):
            other = encoded(_changed(tokens, step, dim=1))
            _same(other[:, :, :group], latent[:, :, :group], f"step {step} changes earlier latents")
        assert not torch.equal(other[:, :, group], latent[:, :, group]), (
            f"the last step of group {group} does not change its latent"
        )
        other = decoded(_changed(latent, group, dim=2))
        _same(other[:, :first], whole[:, :first], f"latent {group} changes steps before {first}")
    _same(encoded(tokens[:, :1]), latent[:, :, :1], "the first step is another latent as an image")
    sizes = [1 + every, every, 2 * every]
    found = _in_pieces(encoded, tokens, sizes, dim=1, joined=2)
    _same(found, latent, "a clip encoded in pieces differs from the clip as a whole")
    found = _in_pieces(decoded, latent, [1, 2, 2], dim=2, joined=1)
    _same(found, whole, "latents decoded in pieces differ from the clip as a whole")


@torch.no_grad()
def check_causal_decoder(decoder: TemporalDecoder) -> None:
    """No frame depends on later steps, and a clip in pieces gives what it gives whole.

    Raises:
        AssertionError: with what is wrong.
    """
    assert isinstance(decoder, nn.Module)
    _move(decoder)
    steps, place = decoder.window + 3, (1, 2)
    tokens = torch.randn(2, steps, 2, decoder.features)

    def decoded(some: Tensor, past: Past | None = None) -> Tensor:
        return decoder(_features(some, place), past)

    whole = decoded(tokens)
    for step in range(1, steps):
        first = step * decoder.patch[0]
        other = decoded(_changed(tokens, step, dim=1))
        _same(other[:, :, :first], whole[:, :, :first], f"step {step} changes earlier frames")
    found = _in_pieces(decoded, tokens, [1, steps - 3, 2], dim=1, joined=2)
    _same(found, whole, "a clip decoded in pieces differs from the clip as a whole")


def _move(module: nn.Module) -> None:
    drawing = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.add_(MOVED * torch.randn(parameter.shape, generator=drawing))


def _features(steps: Tensor, place: tuple[int, int]) -> Features:
    return Features(steps.flatten(1, 2), (steps.shape[1], *place))


def _changed(values: Tensor, at: int, *, dim: int) -> Tensor:
    """Values with one step replaced."""
    other = values.clone()
    other.select(dim, at).normal_(generator=torch.Generator().manual_seed(2))
    return other


def _in_pieces(run: Run, values: Tensor, sizes: list[int], *, dim: int, joined: int) -> Tensor:
    past = Past()
    return torch.cat(
        [run(piece, past) for piece in torch.split(values, sizes, dim=dim)], dim=joined
    )


def _same(found: Tensor, wanted: Tensor, otherwise: str) -> None:
    assert found.shape == wanted.shape, (
        f"{otherwise}: {tuple(found.shape)}, not {tuple(wanted.shape)}"
    )
    apart = (found - wanted).abs().max().item()
    assert apart <= CLOSE * max(1.0, wanted.abs().max().item()), f"{otherwise}, by {apart:.2g}"

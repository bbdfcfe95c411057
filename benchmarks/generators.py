"""A generator's training step and sampling step against plain loops of timm blocks of the same size.

    python benchmarks/generators.py [--generator dit-s --side 16 --channels 64 --batch-size 8]
        [--device cuda --precision bf16 --compile]

A training step is forward and backward, a sampling step forward alone. The loops have a linear layer, as
many blocks as wide, a norm and a linear layer; ``modulated`` has blocks with all that ours have (RMSNorm,
QK-norm, rotary positions, SwiGLU, and scales, shifts and gates by time and label), ``alike`` the same without
modulation, ``plain`` those of a ViT (LayerNorm, GELU). They take turns, round by round; the best round of each counts.
``--cpu-time`` counts the process's own time, on a machine that has other things to do.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import RmsNorm, RotaryEmbeddingCat
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rpiae.core.model.resolve import part_config

#: Classes of the generator.
CLASSES = 1000


class TimmLoop(nn.Module):
    """Blocks one after the other, between two linear layers.

    Args:
        block: makes a block of a width and a number of heads.
        rotary: positions that every block takes; None for blocks that take none.
        channels: of the latents.
        config: whose width, depth and number of heads the loop has.
    """

    def __init__(
        self, block: Callable[..., nn.Module], rotary: nn.Module | None, channels: int, config: Any
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, config.width)
        self.blocks = nn.ModuleList(
            block(config.width, config.num_heads) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.final = nn.Linear(config.width, channels)
        self.rotary = rotary

    def forward(self, latents: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Latents (b, C, h, w) → the same; time and labels are left aside."""
        tokens = self.embed(latents.flatten(2).mT)
        positions = {} if self.rotary is None else {"rope": self.rotary.get_embed()}
        for block in self.blocks:
            tokens = block(tokens, **positions)
        return self.final(self.norm(tokens)).mT.reshape(latents.shape)


class ModulatedTimmBlock(nn.Module):
    """The parts of a timm block, its two branches scaled, shifted and gated as DiT's are.

    Args:
        block: whose parts they are.
        width: channels of the tokens.
    """

    def __init__(self, block: EvaBlock, width: int) -> None:
        super().__init__()
        self.block = block
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor, rope: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        block = self.block
        tokens = tokens + gate1 * block.attn(block.norm1(tokens) * (1 + scale1) + shift1, rope=rope)
        return tokens + gate2 * block.mlp(block.norm2(tokens) * (1 + scale2) + shift2)


class ModulatedTimmLoop(TimmLoop):
    """As ``TimmLoop``, modulated by an embedding of time and label."""

    def __init__(
        self, block: Callable[..., EvaBlock], rotary: nn.Module, channels: int, config: Any
    ):
        super().__init__(
            lambda width, heads: ModulatedTimmBlock(block(width, heads), width),
            rotary, channels, config,
        )  # fmt: skip
        width = config.width
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(CLASSES + 1, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, latents: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Latents (b, C, h, w) → the same."""
        moment = self.time(fourier_embed(time, torch.arange(128, device=time.device)))
        condition = (moment + self.labels(labels)).unsqueeze(1)
        tokens, rope = self.embed(latents.flatten(2).mT), self.rotary.get_embed()
        for block in self.blocks:
            tokens = block(tokens, condition, rope)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.final(self.norm(tokens) * (1 + scale) + shift).mT.reshape(latents.shape)


def fourier_embed(time: Tensor, frequencies: Tensor) -> Tensor:
    """Cosines and sines of times (b,), (b, 2·frequencies)."""
    angle = time.unsqueeze(1) * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def models(arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """The generator and the loops, on the device."""
    side, channels = arguments.side, arguments.channels
    tree = {"latent_channels": channels, "rows": side, "columns": side, "num_classes": CLASSES}
    base = part_config("generators", arguments.generator)
    config: Any = part_config("generators", _tree(base) | tree)
    alike = functools.partial(
        EvaBlock, qkv_fused=True, mlp_ratio=config.mlp_ratio * 2 / 3, swiglu_mlp=True,
        num_prefix_tokens=0, attn_type="rope", qk_norm=True,
        norm_layer=functools.partial(RmsNorm, eps=1e-6),
    )  # fmt: skip
    plain = functools.partial(Block, mlp_ratio=config.mlp_ratio, qkv_bias=True)
    rotary = RotaryEmbeddingCat(
        config.width // config.num_heads, in_pixels=False, feat_shape=[side, side]
    )
    found = {
        arguments.generator: config.build(),
        "timm, modulated": ModulatedTimmLoop(alike, rotary, channels, config),
        "timm, alike": TimmLoop(alike, rotary, channels, config),
        "timm, plain": TimmLoop(plain, None, channels, config),
    }
    for model in found.values():
        for value in model.parameters():
            if not value.any():  # layers that begin at zero
                nn.init.normal_(value, std=0.02)
    found = {name: model.to(arguments.device) for name, model in found.items()}
    if arguments.compile:
        return {name: torch.compile(model) for name, model in found.items()}
    return found


def _tree(config: Any) -> dict[str, Any]:
    return {"name": config.name, **{n: v for n, v in config.arguments().items() if v is not None}}


def seconds(model: nn.Module, arguments: argparse.Namespace, *, trains: bool) -> float:
    """Of one step."""
    shape = (arguments.batch_size, arguments.channels, arguments.side, arguments.side)
    latents = torch.randn(shape, device=arguments.device)
    times = torch.rand(arguments.batch_size, device=arguments.device)
    labels = torch.randint(CLASSES, (arguments.batch_size,), device=arguments.device)
    half = arguments.precision == "bf16"
    autocast = torch.autocast(arguments.device.split(":")[0], torch.bfloat16, enabled=half)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    _wait(arguments.device)
    begun = clock()
    with autocast, contextlib.nullcontext() if trains else torch.no_grad():
        found = model(latents, times, labels)
    if trains:
        found.float().square().mean().backward()
        model.zero_grad(set_to_none=True)
    _wait(arguments.device)
    return clock() - begun


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--generator", default="dit-s")
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    found = models(arguments)
    for name, model in found.items():
        print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    print(
        f"latents {arguments.channels}×{arguments.side}×{arguments.side}, batch "
        f"{arguments.batch_size}, {arguments.precision}, {arguments.device}, "
        f"{torch.get_num_threads()} threads"
    )
    for trains in (True, False):
        best = dict.fromkeys(found, float("inf"))
        for number in range(arguments.rounds + 1):
            for name, model in found.items():
                taken = seconds(model, arguments, trains=trains)
                if number:  # the first one warms up
                    best[name] = min(best[name], taken)
        own = best[arguments.generator]
        for name, taken in best.items():
            print(
                f"{'training' if trains else 'sampling'} step  {name:16} "
                f"{arguments.batch_size / taken:9.2f} images/s  ratio {taken / own:.2f}"
            )


if __name__ == "__main__":
    main()

"""Devices, precision and distribution; the only user of Accelerate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from attrs import frozen
from torch import Tensor, nn

from rpiae.core.errors import UsageError

#: bf16 is taken on its own only where its matrix products are at least this much faster.
WORTHWHILE = 1.3


@frozen(kw_only=True)
class MatrixSpeed:
    """Measured speed of square matrix products in TFLOP/s."""

    fp32: float
    bf16: float
    size: int


class Runtime:
    """Where and in which precision a run happens.

    Precision is our own autocast: weights, norms' statistics, losses and optimiser stay in fp32.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto``, ``fp32`` or ``bf16``.

    Raises:
        UsageError: if the device is not there.
    """

    def __init__(self, *, device: str = "auto", precision: str = "auto") -> None:
        self.device = choose_device(device)
        self.precision, self.reason = choose_precision(precision, self.device)
        self._accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self._accelerator.is_main_process)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products in bf16 where that is the precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def prepare(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> Any:
        """Wrap a player and its optimiser for this run's devices and processes."""
        return self._accelerator.prepare(module, optimiser)

    def backward(self, loss: Tensor) -> None:
        """Backward pass."""
        self._accelerator.backward(loss)

    def reduce(self, gradient: Tensor) -> Tensor:
        """Mean over processes."""
        return self._accelerator.reduce(gradient, reduction="mean")  # type: ignore[no-any-return]  # Accelerate is untyped

    def release(self) -> None:
        """Forget everything prepared, at the end of a stage."""
        self._accelerator.free_memory()

    def synchronise(self) -> None:
        """Wait for the device, for timings."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_device(device: str) -> torch.device:
    """The device behind a setting.

    Raises:
        UsageError: if it is malformed or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device {device!r}: use auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r}: use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {device!r}: this torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; rpiae doctor says more"
        )
    return chosen


def choose_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """The precision behind a setting, and the reason in words."""
    if precision != "auto":
        return precision, "asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return "bf16", "the GPU has it"
        return "fp32", "the GPU has no bf16"
    speed = matrix_speed(device)
    ratio = speed.bf16 / speed.fp32
    measured = f"bf16 matrix products run at {ratio:.1f} times the speed of fp32 here"
    return ("bf16" if ratio >= WORTHWHILE else "fp32"), measured


def matrix_speed(device: torch.device, *, size: int = 1024, repeats: int = 3) -> MatrixSpeed:
    """Measure square matrix products in both precisions; the best of ``repeats`` counts."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device).to(dtype)
        a @ a
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            product = a @ a
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
            del product
        found[dtype] = 2 * size**3 / min(seconds) / 1e12
    return MatrixSpeed(fp32=found[torch.float32], bf16=found[torch.bfloat16], size=size)

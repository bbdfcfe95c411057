"""Devices, precision and distribution; the only user of Accelerate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
)
from attrs import frozen
from torch import Tensor, nn

from rpiae.core.errors import DataError, RpiaeError, RunError, TrainingError
from rpiae.core.runtime.devices import choose_device

T = TypeVar("T")
Precision = Literal["auto", "fp32", "bf16"]

#: bf16 is taken on its own only where its matrix products are at least this much faster.
WORTHWHILE = 1.3

#: Side of the matrices that a measurement begins with, and how many times slower than fp32 bf16 may
#: be on them before it is taken for emulated.
SMALL = 128
EMULATED = 4


#: Steps between readings of an accelerator.
READ_EVERY = 20

#: What launchers tell a process about the others; a process of its own must not see it.
LAUNCHER_VARIABLES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
)


@frozen(kw_only=True)
class MatrixSpeed:
    """Measured speed of square matrix products in TFLOP/s."""

    fp32: float
    bf16: float
    size: int


class Runtime:
    """Where, in which precision and over how many processes a run happens.

    Precision is our own autocast: weights, norms' statistics, losses and optimiser stay in fp32.
    The processes are those of the launcher (``rpiae build --processes``, ``accelerate launch`` or
    ``torchrun``), as Accelerate finds them in the environment.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        compile: whether blocks are compiled in training steps.

    Attributes:
        rank: which of the processes this is.
        num_processes: how many there are.

    Raises:
        UsageError: if the device is not there.
    """

    def __init__(
        self, *, device: str = "auto", precision: Precision = "auto", compile: bool = False
    ) -> None:
        self.compile = compile
        self.device = choose_device(device)
        if self.device.index is not None:
            torch.cuda.set_device(self.device)  # Accelerate takes the current one
        self._accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
            ],
        )
        self.rank: int = self._accelerator.process_index
        self.num_processes: int = self._accelerator.num_processes
        if self.num_processes > 1:
            self.device = self._accelerator.device
        self.precision, self.reason = self.on_main(lambda: choose_precision(precision, self.device))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self._accelerator.is_main_process)

    @property
    def in_words(self) -> str:
        """Precision, device and number of processes, and why the precision."""
        processes = f" in {self.num_processes} processes" if self.num_processes > 1 else ""
        return f"{self.precision} on {self.device}{processes}: {self.reason}"

    @property
    def read_every(self) -> int:
        """Steps between readings of what they report, where nobody says: each one on a CPU, where
        that costs nothing; fewer where the device would have to be waited for."""
        return 1 if self.device.type == "cpu" else READ_EVERY

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products in bf16 where that is the precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def prepare(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> Any:
        """Wrap a player and its optimiser for this run's devices and processes."""
        return self._accelerator.prepare(module, optimiser)

    def unsynchronised_if(
        self, player: nn.Module, more: bool
    ) -> contextlib.AbstractContextManager[Any]:
        """Where gradients stay in each process, if more parts of the batch follow."""
        return self._accelerator.no_sync(player) if more else contextlib.nullcontext()

    def reduce(self, tensor: Tensor) -> Tensor:
        """Mean over processes."""
        return self._accelerator.reduce(tensor, reduction="mean")  # type: ignore[no-any-return]  # Accelerate is untyped

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """Mean of every value over processes."""
        if self.num_processes == 1 or not values:
            return dict(values)
        together = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, self.reduce(together).tolist(), strict=True))

    def gather(self, value: T) -> list[T]:
        """A value of every process, in their order; it has to pickle."""
        if self.num_processes == 1:
            return [value]
        return list(gather_object([value]))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return self.means({"flag": float(flag)})["flag"] > 0

    def on_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process alone; every process gets what it returned.

        Raises:
            RpiaeError: what the function raised, in every process.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except RpiaeError as error:
                if self.num_processes == 1:
                    raise
                outcome[1] = error
        if self.num_processes > 1:
            shared = [outcome[0], outcome[1] and str(outcome[1])]
            broadcast_object_list(shared)
            if self.is_main and outcome[1]:
                raise outcome[1]
            if shared[1]:
                raise RunError(shared[1])
            outcome = shared
        return outcome[0]  # type: ignore[no-any-return]  # broadcast objects are untyped

    @contextlib.contextmanager
    def with_others(self, where: Callable[[], str]) -> Iterator[None]:
        """Where other processes can make themselves felt: says clearly if one of them is gone.

        Args:
            where: gives how to go on, for the message.

        Raises:
            TrainingError: if another training process ended.
            DataError: if a process that loads images was killed; torch raises that at any moment.
        """
        try:
            yield
        except RuntimeError as error:
            if told := ended_loader(error):
                raise DataError(f"{told}. {where()}") from None
            lost = isinstance(error, torch.distributed.DistError) or any(
                name in str(error) for name in ("gloo", "NCCL", "Connection closed by peer")
            )
            if self.num_processes == 1 or not lost:
                raise
            raise TrainingError(
                f"another process of this run is gone ({_first_line(error)}), so this one stops "
                f"too. {where()}"
            ) from None

    def release(self) -> None:
        """Forget everything prepared, at the end of a stage."""
        self._accelerator.free_memory()

    def close(self) -> None:
        """Leave the group of processes, at the end of a run."""
        if self.num_processes > 1:
            self._accelerator.end_training()

    def memory(self) -> int:
        """Bytes: the most that was allocated on a CUDA device, else what is resident now."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return int(psutil.Process().memory_info().rss)

    def synchronise(self) -> None:
        """Wait for the device, for timings."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def ended_loader(error: RuntimeError) -> str | None:
    """What to say of an error that tells of the end of a loading process; None for other errors.

    Torch raises it wherever the training process is at that moment.
    """
    told = "DataLoader worker" in str(error)
    return loader_ended(_first_line(error).rstrip(" .")) if told else None


def loader_ended(cause: str) -> str:
    """What to say where a loading process ended: it takes its cause with it, so that what is left of
    it is all there is."""
    return (
        f"a process that loads images ended ({cause}). Lower data.workers: 0 loads in the training "
        "process, where a cause is told"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def choose_precision(precision: Precision, device: torch.device) -> tuple[Precision, str]:
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
    """Measure square matrix products in both precisions; the best of ``repeats`` counts.

    Where the processor has no instructions for bf16, it is emulated, up to a hundred times slower,
    and measured on small matrices alone.
    """
    small = {
        dtype: _product_seconds(device, dtype, size=SMALL, repeats=repeats)
        for dtype in (torch.float32, torch.bfloat16)
    }
    fp32 = 2 * size**3 / _product_seconds(device, torch.float32, size=size, repeats=repeats)
    if small[torch.bfloat16] > EMULATED * small[torch.float32]:
        bf16 = 2 * SMALL**3 / small[torch.bfloat16]
    else:
        bf16 = 2 * size**3 / _product_seconds(device, torch.bfloat16, size=size, repeats=repeats)
    return MatrixSpeed(fp32=fp32 / 1e12, bf16=bf16 / 1e12, size=size)


def _product_seconds(device: torch.device, dtype: torch.dtype, *, size: int, repeats: int) -> float:
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
    return min(seconds)

"""Memory that training takes at the least, and what a device has, before anything is allocated."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from attrs import frozen
from torch import nn

from rpiae.core.errors import UsageError

#: Values kept beside each trained parameter: its gradient, AdamW's two moments, its average.
BESIDE = 4


@frozen(kw_only=True)
class MemoryNeed:
    """Bytes that a run keeps whatever its batches are like; activations and critics come on top.

    Attributes:
        model: weights and buffers.
        pivot: the frozen encoder that the model is held against.
        training: gradients, moments and averages of the stage that trains most.
        stage: that stage; empty where nothing is trained.
    """

    model: int
    pivot: int
    training: int
    stage: str

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.model + self.pivot + self.training


def memory_need(roles: Mapping[str, nn.Module], trained: Mapping[str, int]) -> MemoryNeed:
    """What a model takes to be trained.

    Args:
        roles: its parts, also on the meta device.
        trained: parameters that each stage trains, by the stage's name.
    """
    sizes = {role: sum(t.nbytes for t in _tensors(part)) for role, part in roles.items()}
    stage = max(trained, key=lambda name: trained[name], default="")
    return MemoryNeed(
        model=sum(sizes.values()),
        pivot=sizes.get("encoder", 0),
        training=trained.get(stage, 0) * BESIDE * torch.float32.itemsize,
        stage=stage,
    )


def check_memory(need: MemoryNeed, device: torch.device) -> None:
    """Refuse a run that needs more memory than its device, or the host that builds its model, has.

    Raises:
        UsageError: with the numbers, where one has not.
    """
    state = f", gradients and moments of stage {need.stage} {amount(need.training)}"
    # The model is built in the host's memory, wherever it goes from there.
    for place, number, more in (
        (torch.device("cpu"), need.model + need.pivot, ""),
        (device, need.total, state if need.stage else ""),
    ):
        there = available_memory(place)
        if there is not None and number > there:
            raise UsageError(
                f"this run needs at least {amount(number)} of memory on {place} (model "
                f"{amount(need.model)}, pivot {amount(need.pivot)}{more}), and "
                f"{amount(there)} are free. Take smaller parts (width, depth), or another device"
            )


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device now; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    told = [free for free in (_of_the_machine(), _of_the_container()) if free is not None]
    return min(told, default=None)


def _of_the_machine() -> int | None:
    meminfo = _numbers(Path("/proc/meminfo"))
    if "MemAvailable:" in meminfo:
        return 1024 * (meminfo["MemAvailable:"] + meminfo.get("SwapFree:", 0))
    with contextlib.suppress(ValueError, OSError, AttributeError):  # a system without sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_the_container() -> int | None:
    """What its control group leaves this process; files that it caches can be given up."""
    groups = Path("/sys/fs/cgroup")
    for limit, statistics, used in (
        ("memory.max", "memory.stat", "anon"),
        ("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss"),
    ):
        with contextlib.suppress(OSError, ValueError):  # another version, or no limit: "max"
            number = int((groups / limit).read_text())
            return number - _numbers(groups / statistics).get(used, 0)
    return None


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    with contextlib.suppress(OSError):
        rows = [line.split() for line in path.read_text().splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
    return {}


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def amount(number: int) -> str:
    """Bytes in words: 12.30 GiB, 4.0 MiB."""
    return f"{number / 2**30:,.2f} GiB" if number >= 2**28 else f"{number / 2**20:.1f} MiB"

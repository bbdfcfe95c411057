"""Devices as settings name them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.runtime.names import shown

_NAME = re.compile(r"auto|cpu|cuda(:[0-9]{1,9})?")


def check_device_name(device: str) -> None:
    """Refuse a setting that names no device, here or on another machine.

    Raises:
        UsageError: if it is malformed.
    """
    if not _NAME.fullmatch(device):
        raise UsageError(f"device {shown(device)}: use auto, cpu, cuda or cuda:N")


def choose_device(device: str) -> torch.device:
    """The device behind a setting.

    Raises:
        UsageError: if it is malformed or not there.
    """
    check_device_name(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {device!r}: this torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; rpiae doctor says more"
        )
    return torch.device(device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in memory on a device, which nobody waits for: to a card it goes from pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

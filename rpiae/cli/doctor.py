"""``rpiae doctor``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import socket
from pathlib import Path
from typing import Any

import rpiae
from rpiae.cli.screen import stdout
from rpiae.core.registry.registry import installed_plugins

HUB = "huggingface.co"


def options(parser: argparse.ArgumentParser) -> None:
    """How it is printed."""
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Print what this machine has and what rpiae would use."""
    import torch

    from rpiae.core.model.attention import choose_backend
    from rpiae.core.runtime.devices import choose_device
    from rpiae.core.runtime.processes import choose_precision, matrix_speed

    device = choose_device("auto")
    speed = matrix_speed(device)
    precision, reason = choose_precision("auto", device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    backend = choose_backend(device, dtype, 64)
    training = choose_backend(device, dtype, 64, num_tokens=256, gradients=True)
    report: dict[str, Any] = {
        "rpiae": rpiae.__version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, built for CUDA {torch.version.cuda or 'none'}",
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "matrix products": (
            f"{speed.fp32:.2f} TFLOP/s in fp32, {speed.bf16:.2f} in bf16 "
            f"({speed.size}³ on {device})"
        ),
        "precision": f"{precision}: {reason}",
        "attention": f"{backend.name}: {backend.reason}",
        "in training": f"{training.name}: {training.reason} (256 tokens)",
        "xformers": _version("xformers"),
        "timm": _version("timm"),
        "open_clip_torch": _version("open_clip_torch"),
        "hub": _hub(),
        "disk": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free in {Path.cwd()}",
        "plugins": [
            f"{p.label} {p.version}" + (f" BROKEN: {p.error}" if p.error else "")
            for p in installed_plugins()
        ],
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    for name, value in report.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        stdout.print(f"{name:>16}  {shown}", soft_wrap=True)
    return 0


def _devices() -> list[str]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"cpu ({os.cpu_count()} cores)", *gpus]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set: only the local cache is used"
    try:
        with socket.create_connection((HUB, 443), timeout=3):
            return f"{HUB} is reachable"
    except OSError as error:
        return f"{HUB} cannot be reached ({error}); local weights and the embedded pivot work"

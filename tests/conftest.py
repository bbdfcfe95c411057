"""Options, markers, hypothesis profiles and fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

#: Reference files that lie beside a checkout of the project; not part of it.
SHARED = Path(__file__).parents[2] / "shared"

# The first example pays for importing torch, which is no fault of the strategy.
_SLOW_START = [HealthCheck.too_slow]

# ``dev`` is quick, ``ci`` looks further; HYPOTHESIS_PROFILE chooses.
settings.register_profile(
    "dev", max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=_SLOW_START
)
settings.register_profile(
    "ci", max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=_SLOW_START
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")
    parser.addoption(
        "--device", default="cuda", help="where tests marked gpu run (cpu: to try the tests)"
    )


def pytest_configure() -> None:
    """Have every way to start the tests, and every process that they start, begin alike.

    Toys gain nothing from more threads than one, and several workers lose by them. The size of a
    terminal (readline leaves one in the environment of workers) decides how output is broken into
    lines. A shell has what it starts in the background ignore Ctrl-C.
    """
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = []
    if not config.getoption("--slow"):
        skips.append(("slow", pytest.mark.skip(reason="slow: add --slow")))
    if config.getoption("--device").startswith("cuda") and not torch.cuda.is_available():
        skips.append(("gpu", pytest.mark.skip(reason="no CUDA device")))
    if os.environ.get("RPIAE_NETWORK") != "1":
        skips.append(("network", pytest.mark.skip(reason="network: set RPIAE_NETWORK=1")))
    for item in items:
        for name, skip in skips:
            if name in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Leave all that is imported by now out of later garbage collections, of which every stage of a
    run ends with a full one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_folder() -> Iterator[None]:
    """A test that leaves the process in another folder would break those that follow."""
    before = Path.cwd()
    yield
    assert Path.cwd() == before


@pytest.fixture
def card(request: pytest.FixtureRequest) -> torch.device:
    """Where tests marked gpu run."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def shared() -> Path:
    """The folder of reference files."""
    if not SHARED.is_dir():
        pytest.skip(f"reference files are not beside the checkout ({SHARED})")
    return SHARED

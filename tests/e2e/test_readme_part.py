"""README's part for a notebook, as it stands there once it does, passes the contract kit."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpiae import ENCODERS
from rpiae.testing import check_builds, check_encoder

NOTEBOOK = """
import rpiae
from attrs import frozen
from rpiae.core.config import settings_only
from rpiae.core.contracts import BlockFeatures, Features
from torch import nn


class MyEncoder(nn.Module):  # fits rpiae.core.contracts.Encoder
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, *, width, depth, patch):
        super().__init__()
        self.width, self.patch, self.num_blocks = width, patch, depth
        self.stem = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.place = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                nhead=4,
                dim_feedforward=4 * width,
                dropout=0.0,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )

    @property
    def last_weight(self):  # what adaptive loss weights refer to
        return self.layers[-1].linear2.weight

    def forward(self, images):
        found = self.blocks(images, [-1])
        return Features(found.tokens[0], found.grid)

    def blocks(self, images, indices):
        patches = self.stem(images)
        patches = patches + self.place(patches)
        tokens, after = patches.flatten(2).transpose(1, 2), []
        for layer in self.layers:
            tokens = layer(tokens)
            after.append(tokens)
        return BlockFeatures([after[i] for i in indices], (1, *patches.shape[2:]))


@rpiae.ENCODERS.register("mine", summary="my pivot")
@frozen(kw_only=True)
class MyEncoderConfig(rpiae.EncoderConfig):
    module = f"{__name__}:MyEncoder"
    pretrained: bool = settings_only(False)  # it has no weights to load
    width: int = 64
    depth: int = 4
    patch: int = 8

    def describe(self):
        return rpiae.EncoderDescription(
            width=self.width,
            patch=self.patch,
            output_patch=self.patch,
            num_blocks=self.depth,
            prefix_tokens=0,
            image_size=64,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
"""

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    module = types.ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    before = dict(ENCODERS._entries)
    exec(compile(NOTEBOOK, "a_notebook", "exec"), module.__dict__)
    yield module
    ENCODERS._entries = before


def test_the_notebooks_encoder_fits_its_contract_and_trains(notebook: types.ModuleType) -> None:
    check_encoder(notebook.MyEncoderConfig(width=32, depth=2))
    check_builds(encoder={"name": "mine", "width": 32, "depth": 2})


def test_readme_shows_this_encoder() -> None:
    text = README.read_text("utf-8")
    assert "class MyEncoder(nn.Module)" not in text or NOTEBOOK.strip() in text

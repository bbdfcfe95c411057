"""The types of options."""

from __future__ import annotations

import argparse
from fractions import Fraction

import pytest

from rpiae.cli.options import rate
from rpiae.latents.layout import is_rate


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("25", Fraction(25)),
        ("29.97", Fraction(2997, 100)),
        ("30000/1001", Fraction(30000, 1001)),
        ("0.001", Fraction(1, 1000)),
        ("1000", Fraction(1000)),
    ],
)
def test_frame_rates(word: str, wanted: Fraction) -> None:
    assert rate(word) == wanted
    assert is_rate(str(wanted))


@pytest.mark.parametrize(
    "word",
    ["", "0", "-25", "1001", "0.0009", "1/0", "1/" + "0" * 5000, "25/", "fast", "nan", "inf", "25fps", "٢٥", "9" * 5000,
     "1e2", "1e30000000", "1e-30000000"],
)  # fmt: skip
def test_no_frame_rates(word: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected frames per second"):
        rate(word)


@pytest.mark.parametrize(
    "value", ["", "0", "-25", "1/0", "fast", "1e30000000", "9" * 5000, "25\n", 25, None]
)
def test_no_frame_rates_of_an_index(value: object) -> None:
    assert not is_rate(value)

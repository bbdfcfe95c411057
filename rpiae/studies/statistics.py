"""Statistics of one number over the seeds of a row, and how they are written."""

from __future__ import annotations

import math

from attrs import frozen

#: Seeds from which on a spread is given; of fewer, the values are.
SEEDS_FOR_SPREAD = 3
MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with so many decimal places, a true minus sign and no negative zero."""
    sign = "+" if signed and round(value, digits) != 0 else ""
    return f"{value:{sign}z.{digits}f}".replace("-", MINUS)


@frozen(kw_only=True)
class Statistics:
    """Statistics of one metric over the seeds of a row.

    Attributes:
        values: one per seed, in the metric's unit.
    """

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Their mean; NaN without a seed."""
        return sum(self.values) / self.n if self.values else math.nan

    @property
    def spread(self) -> float | None:
        """The sample standard deviation (divided by n − 1); None for fewer than three seeds."""
        if self.n < SEEDS_FOR_SPREAD:
            return None
        mean = self.mean
        return math.sqrt(sum((value - mean) ** 2 for value in self.values) / (self.n - 1))

    def text(self, digits: int, *, signed: bool = False) -> str:
        """``31.2`` of one seed, ``31.2 / 31.4`` of two, ``31.20 ± 0.12`` of more.

        Args:
            digits: decimal places.
            signed: whether positive numbers have a sign too.
        """
        if self.spread is None:
            return " / ".join(number(value, digits, signed=signed) for value in self.values) or "–"
        return f"{number(self.mean, digits, signed=signed)} ± {number(self.spread, digits)}"

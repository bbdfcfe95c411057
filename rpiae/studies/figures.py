"""Figures of a study as inline SVG: the frontier of two metrics, and curves.

Written by hand, without matplotlib: text stays text and colours come from the page's style
sheet, so that one figure serves light and dark pages, and takes a few kilobytes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from attrs import frozen

from rpiae.core.names import printable
from rpiae.studies.statistics import MINUS

WIDTH, HEIGHT = 760, 420
MOST_POINTS = 60
NUM_COLOURS = 8
#: Lines of one colour are told apart by their dashes.
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")
FONT = 12.0
#: Widths of letters are about this share of the font size.
LETTER = 0.57
LINE = 15.0

Box = tuple[float, float, float, float]


@frozen(kw_only=True)
class Axis:
    """What an axis shows.

    Attributes:
        label: its title, with the unit.
        higher_is_better: or lower.
    """

    label: str
    higher_is_better: bool = True


@frozen(kw_only=True)
class Point:
    """A labelled point, with the spread in either direction where there is one."""

    label: str
    x: float
    y: float
    x_spread: float | None = None
    y_spread: float | None = None


@frozen(kw_only=True)
class Line:
    """A labelled line of several parts, which are not joined."""

    label: str
    parts: tuple[tuple[tuple[float, float], ...], ...]


def pareto(
    points: Sequence[tuple[float, float]], *, higher_x: bool = True, higher_y: bool = True
) -> tuple[int, ...]:
    """Indices of the points that no other dominates, in the order of x.

    A point dominates another if it is as good in both ways and better in one; of equal points, none
    dominates the other. Points that are not finite take no part.
    """
    signs = (1 if higher_x else -1, 1 if higher_y else -1)
    scores = {
        index: (signs[0] * x, signs[1] * y)
        for index, (x, y) in enumerate(points)
        if math.isfinite(x) and math.isfinite(y)
    }
    kept = [
        index
        for index, score in scores.items()
        if not any(o != score and o[0] >= score[0] and o[1] >= score[1] for o in scores.values())
    ]
    return tuple(sorted(kept, key=lambda index: points[index]))


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[int]:
    """Indices of at most so many points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(range(len(points)))
    return [round(i * (len(points) - 1) / (most - 1)) for i in range(most)]


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten) from low to high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def frontier_figure(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Points in the plane of two metrics; the ones that no other dominates are joined.

    Args:
        points: finite, at least one.
        x, y: the axes.
    """
    best = pareto(
        [(p.x, p.y) for p in points],
        higher_x=x.higher_is_better,
        higher_y=y.higher_is_better,
    )
    plane = _Plane(
        xs=[v for p in points for v in _reach(p.x, p.x_spread)],
        ys=[v for p in points for v in _reach(p.y, p.y_spread)],
        right=WIDTH - 20,
        bottom=HEIGHT - 52,
        margin=0.09,
    )
    body = [*plane.frame(x.label, y.label)]
    front = [plane.at(points[i].x, points[i].y) for i in best]
    if len(front) > 1:
        body.append(f'<path class="front" d="{_path(front)}"/>')
    for point in points:
        body.extend(f'<path class="bar" d="{_path(ends)}"/>' for ends in plane.bars(point))
    places = [plane.at(p.x, p.y) for p in points]
    for index, (point, (left, top)) in enumerate(zip(points, places, strict=True)):
        body.append(
            f'<circle class="{"best" if index in best else "other"}" cx="{_short(left)}" '
            f'cy="{_short(top)}" r="4.5"><title>{_escaped(point.label)}: {point.x:.4g}, '
            f"{point.y:.4g}</title></circle>"
        )
    obstacles = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    strokes = [front, *(ends for point in points for ends in plane.bars(point))]
    obstacles += [(x - 2, y - 2, x + 2, y + 2) for stroke in strokes for x, y in _along(stroke)]
    for index in sorted(range(len(points)), key=lambda i: (i not in best, i)):
        box, leader = _place(places[index], _width(points[index].label), obstacles, plane)
        obstacles.append(box)
        if leader:
            body.append(f'<path class="leader" d="{_path([places[index], leader])}"/>')
        body.append(
            f'<text class="name{" strong" if index in best else ""}" x="{_short(box[0] + 2)}" '
            f'y="{_short(box[3] - 4)}">{_escaped(points[index].label)}</text>'
        )
    names = ", ".join(points[index].label for index in best)
    return _svg(HEIGHT, body, f"{y.label} against {x.label}; not dominated: {names}")


def curves_figure(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Lines, each named at its right end.

    Args:
        lines: at least one point in all.
        x_label, y_label: titles of the axes.
    """
    lines = [line for line in lines if any(line.parts)]
    longest = max(len(line.label) for line in lines)
    right = WIDTH - min(20 + _width("n" * longest), WIDTH * 0.4)
    height = max(320, LINE * len(lines) + 90)
    plane = _Plane(
        xs=[p[0] for line in lines for part in line.parts for p in part],
        ys=[p[1] for line in lines for part in line.parts for p in part],
        right=right,
        bottom=height - 52,
        margin=0.03,
    )
    body = [*plane.frame(x_label, y_label)]
    ends = []
    for index, line in enumerate(lines):
        style = _style(index)
        for part in filter(None, line.parts):
            points = [plane.at(*part[i]) for i in thin(part)]
            if len(points) > 1:
                body.append(f'<path {style} d="{_path(points)}"/>')
            else:
                place = f'cx="{_short(points[0][0])}" cy="{_short(points[0][1])}"'
                body.append(f'<circle class="dot c{index % NUM_COLOURS}" {place} r="2.5"/>')
        last = next(part[-1] for part in reversed(line.parts) if part)
        ends.append(plane.at(*last))
    tops = _apart([top for _, top in ends], LINE, plane.top, plane.bottom)
    for index, (line, (left, end), top) in enumerate(zip(lines, ends, tops, strict=True)):
        body.append(
            f'<path class="leader" d="{_path([(left + 2, end), (right + 10, top)])}"/>'
            f'<text class="name t{index % NUM_COLOURS}" x="{_short(right + 13)}" '
            f'y="{_short(top + 4)}">{_escaped(line.label)}</text>'
        )
    return _svg(height, body, f"{y_label} over {x_label}, one line for each of {len(lines)} rows")


class _Plane:
    """Data to pixels, with ticks.

    Args:
        xs, ys: what has to be in view.
        right, bottom: edges of the plot, in pixels.
        margin: share of the range that is left free on each side.
    """

    left, top = 58.0, 14.0

    def __init__(
        self,
        *,
        xs: Sequence[float],
        ys: Sequence[float],
        right: float,
        bottom: float,
        margin: float,
    ) -> None:
        self.right, self.bottom = right, bottom
        self._xs, self._ys = _range(xs, margin), _range(ys, margin)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is, in pixels."""
        across = (x - self._xs[0]) / (self._xs[1] - self._xs[0])
        up = (y - self._ys[0]) / (self._ys[1] - self._ys[0])
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )

    def frame(self, x_label: str, y_label: str) -> Iterable[str]:
        """Grid, ticks and titles."""
        steps, values = ticks(*self._xs), ticks(*self._ys)
        for value, text in zip(steps, _tick_texts(steps), strict=True):
            left = _short(self.at(value, 0)[0])
            yield f'<path class="grid" d="M{left} {_short(self.top)}V{_short(self.bottom)}"/>'
            yield f'<text class="tick" text-anchor="middle" x="{left}" y="{_short(self.bottom + 18)}">{text}</text>'
        for value, text in zip(values, _tick_texts(values), strict=True):
            top = self.at(0, value)[1]
            yield f'<path class="grid" d="M{_short(self.left)} {_short(top)}H{_short(self.right)}"/>'
            yield f'<text class="tick" text-anchor="end" x="{_short(self.left - 7)}" y="{_short(top + 4)}">{text}</text>'
        middle, height = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        yield (
            f'<text class="axis" text-anchor="middle" x="{_short(middle)}" '
            f'y="{_short(self.bottom + 40)}">{_escaped(x_label)}</text>'
            f'<text class="axis" text-anchor="middle" transform="translate(14 {_short(height)}) '
            f'rotate(-90)">{_escaped(y_label)}</text>'
        )

    def bars(self, point: Point) -> Iterable[list[tuple[float, float]]]:
        """Ends of the error bars, in pixels, as far as the point has spreads."""
        for across, up in ((point.x_spread or 0.0, 0.0), (0.0, point.y_spread or 0.0)):
            if across or up:
                yield [self.at(point.x + sign * across, point.y + sign * up) for sign in (-1, 1)]


def _reach(value: float, spread: float | None) -> tuple[float, float]:
    return value - (spread or 0), value + (spread or 0)


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The range of values with a margin; of one value, a range around it."""
    low, high = min(values), max(values)
    if math.isclose(low, high, rel_tol=1e-9):
        room = abs(low) * 0.05 or 1.0
        return low - room, high + room
    room = (high - low) * margin
    return low - room, high + room


def _place(
    point: tuple[float, float], wide: float, obstacles: Sequence[Box], plane: _Plane
) -> tuple[Box, tuple[float, float] | None]:
    """Where a label goes: the nearest place around its point that covers as little as possible.

    Returns:
        Its box, and where a thin line from the point has to end if that is some way off.
    """
    x, y = point
    candidates = list(_around(x, y, wide))
    inside = [c for c in candidates if _within(c[0], plane)] or candidates
    box, far = min(inside, key=lambda c: _overlap(c[0], obstacles))
    if not far:
        return box, None
    return box, (min(max(x, box[0]), box[2]), box[3] if y > box[3] else box[1])


def _along(stroke: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """Points on a stroke, about 4 pixels from each other."""
    for (x, y), (to_x, to_y) in pairwise(stroke):
        count = max(1, int(math.hypot(to_x - x, to_y - y) / 4))
        for i in range(count + 1):
            yield x + (to_x - x) * i / count, y + (to_y - y) * i / count


def _around(x: float, y: float, wide: float) -> Iterable[tuple[Box, bool]]:
    """Boxes for a label around a point, the nearest first, and whether they are far."""
    half = LINE / 2
    for left, top in ((x + 7, y - half), (x - 7 - wide, y - half)):
        yield (left, top, left + wide, top + LINE), False
    for left in (x - wide / 2, x + 2, x - 2 - wide):
        for top in (y - 7 - LINE, y + 7):
            yield (left, top, left + wide, top + LINE), False
    for distance in (24, 38, 52, 70, 90, 115):
        for left in (x + 8, x - 8 - wide, x - wide / 2):
            for top in (y - distance - half, y + distance - half):
                yield (left, top, left + wide, top + LINE), True


def _within(box: Box, plane: _Plane) -> bool:
    return (
        box[0] >= plane.left + 2
        and box[2] <= plane.right
        and box[1] >= plane.top
        and box[3] <= plane.bottom
    )


def _overlap(box: Box, others: Iterable[Box]) -> float:
    """Area in common with other boxes, square pixels."""
    total = 0.0
    for other in others:
        wide = min(box[2], other[2]) - max(box[0], other[0])
        high = min(box[3], other[3]) - max(box[1], other[1])
        total += max(0.0, wide) * max(0.0, high)
    return total


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as it takes to be a gap apart, in their order, within low and high."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    if moved and moved[-1] > high:
        moved[-1] = high
        for i in reversed(range(len(moved) - 1)):
            moved[i] = min(moved[i], moved[i + 1] - gap)
    result = [0.0] * len(places)
    for place, index in zip(moved, order, strict=True):
        result[index] = max(place, low)
    return result


def _style(index: int) -> str:
    dash = DASHES[index // NUM_COLOURS % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'class="curve c{index % NUM_COLOURS}"{dashes}'


def _tick_texts(values: Sequence[float]) -> list[str]:
    """The shortest decimals that tell the ticks apart; thousands as k."""
    if values and max(map(abs, values)) >= 10_000:
        return [
            text + "k" if text != "0" else text for text in _tick_texts([v / 1000 for v in values])
        ]
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) if values else 1.0
    digits = 0
    while digits < 8 and step and abs(round(step, digits) - step) > 1e-6 * abs(step):
        digits += 1
    return [f"{value:z.{digits}f}".replace("-", MINUS) for value in values]


def _width(text: str) -> float:
    """About how wide a text is, in pixels."""
    return len(text) * FONT * LETTER + 4


def _short(value: float) -> str:
    """A coordinate with a tenth of a pixel."""
    return f"{value:z.1f}".removesuffix(".0")


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points)


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _svg(height: float, body: Iterable[str], description: str) -> str:
    label = _escaped(description)
    return (
        f'<svg viewBox="0 0 {WIDTH} {_short(height)}" role="img" aria-label="{label}" '
        f'font-size="{FONT:g}">{"".join(body)}</svg>'
    )

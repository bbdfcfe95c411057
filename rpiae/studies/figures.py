"""Figures of a study as inline SVG: the frontier of two metrics, and curves.

matplotlib draws them, without pyplot and whatever its user has configured: equal data give equal
text. Text stays text. Every colour becomes a variable of the page's style sheet, so that one figure
serves light and dark pages.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from attrs import frozen

from rpiae.studies.templating import clean

WIDTH, HEIGHT = 760, 420
MOST_POINTS = 60
#: Letters of a label on one line; tooltips have the whole of it.
MOST_LETTERS = 60
LEGEND_LETTERS = 34
LEGEND_LINE = 17

#: What a page's variables are called → the colour that stands for it while matplotlib draws.
COLOURS = {
    "ink": "#1c2024", "muted": "#626a73", "rule": "#d9dde2", "paper": "#ffffff", "accent": "#1f5fb0",
    "c0": "#1f6fc4", "c1": "#d1652b", "c2": "#25875a", "c3": "#b2376f", "c4": "#7759bd",
    "c5": "#8a6d1b", "c6": "#148a9c", "c7": "#6b7480",
}  # fmt: skip
LINE_COLOURS = tuple(COLOURS[f"c{index}"] for index in range(8))
#: Lines of one colour are told apart by their dashes.
DASHES: tuple[Any, ...] = (
    "-", (0, (6, 3)), (0, (2, 3)), (0, (8, 3, 2, 3)), (0, (1, 4))
)  # fmt: skip

STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "axes.formatter.useoffset": False,
    "font.family": ["DejaVu Sans"], "font.size": 12, "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"], "axes.labelpad": 8, "axes.labelsize": 12,
    "xtick.labelsize": 11, "xtick.labelcolor": COLOURS["muted"], "xtick.bottom": False,
    "ytick.labelsize": 11, "ytick.labelcolor": COLOURS["muted"], "ytick.left": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": COLOURS["rule"], "grid.linewidth": 0.7,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.spines.bottom": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "figure.dpi": 72,
}  # fmt: skip


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
    """A labelled line of several segments, which are not joined."""

    label: str
    segments: tuple[tuple[tuple[float, float], ...], ...]


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


def frontier_figure(name: str, points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Points in the plane of two metrics; the ones that no other dominates are joined.

    Args:
        name: what ids in the figure begin with; another one for each figure of a page.
        points: finite, at least one.
        x, y: the axes.
    """
    best = pareto(
        [(p.x, p.y) for p in points],
        higher_x=x.higher_is_better,
        higher_y=y.higher_is_better,
    )
    titles = {}
    with _style(name):
        figure, axes = _axes(HEIGHT, x.label, y.label)
        axes.margins(0.09)
        if len(best) > 1:
            front = [(points[index].x, points[index].y) for index in best]
            axes.plot(
                *zip(*front, strict=True), color=COLOURS["accent"], linewidth=1.6, gid="front"
            )
        for index, point in enumerate(points):
            gid = _draw_point(axes, index, point, best=index in best)
            titles[gid] = f"{point.label}: {point.x:.4g}, {point.y:.4g}"
        # Labels are placed among what is drawn, which must not move afterwards.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        _name_points(axes, points, best)
        names = ", ".join(points[index].label for index in best)
        description = f"{y.label} against {x.label}; not dominated: {names}"
        return _svg(figure, name, description, titles)


def curves_figure(name: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Lines, each named beside the plot; the one that ends highest is named first.

    Args:
        name: what ids in the figure begin with; another one for each figure of a page.
        lines: at least one point in all.
        x_label, y_label: titles of the axes.
    """
    from matplotlib.ticker import EngFormatter

    lines = [line for line in lines if any(line.segments)]
    labels = [
        textwrap.wrap(_one_line(line.label), LEGEND_LETTERS, max_lines=3, placeholder=" …")
        for line in lines
    ]
    titles: dict[str, str] = {}
    with _style(name):
        height = max(320, LEGEND_LINE * sum(map(len, labels)) + 40)
        figure, axes = _axes(height, x_label, y_label)
        axes.margins(0.03)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        handles = [_draw_line(axes, index, line, titles) for index, line in enumerate(lines)]
        order = sorted(range(len(lines)), key=lambda index: -_end(lines[index]))
        legend = figure.legend(
            [handles[index] for index in order], [str(index) for index in order],
            loc="outside right upper", frameon=False, labelcolor="linecolor",
        )  # fmt: skip
        # Set afterwards: a legend leaves out what begins with an underscore.
        for text, index in zip(legend.get_texts(), order, strict=True):
            text.set_text("\n".join(labels[index]))
        description = f"{y_label} over {x_label}, one line for each of {len(lines)} rows"
        return _svg(figure, name, description, titles)


@contextlib.contextmanager
def _style(name: str) -> Iterator[None]:
    """matplotlib's settings while a figure is drawn; ids depend on that and the figure's name."""
    import matplotlib.style

    with (
        matplotlib.style.context(["default", STYLE | {"svg.hashsalt": name}]),
        warnings.catch_warnings(),
    ):
        # The font only measures; the reader's own has the letters that it lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _axes(height: float, x_label: str, y_label: str) -> tuple[Any, Any]:
    """A figure, a pixel of the page being a point of it, and its axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.set_xlabel(_one_line(x_label))
    axes.set_ylabel(_one_line(y_label))
    return figure, axes


def _draw_point(axes: Any, index: int, point: Point, *, best: bool) -> str:
    """Draw a point with its spread; its id."""
    gid = f"{'best' if best else 'other'}-{index}"
    fill, edge = ("accent", "paper") if best else ("paper", "muted")
    marker, _, bars = axes.errorbar(
        point.x, point.y, xerr=point.x_spread or None, yerr=point.y_spread or None,
        ecolor=COLOURS["muted"], elinewidth=1.1, fmt="o", markersize=9, zorder=3,
        markerfacecolor=COLOURS[fill], markeredgecolor=COLOURS[edge],
        markeredgewidth=1 if best else 1.5,
    )  # fmt: skip
    marker.set_gid(gid)
    for number, bar in enumerate(bars):
        bar.set(gid=f"spread-{index}-{number}", zorder=2)
    return gid


def _draw_line(axes: Any, index: int, line: Line, titles: dict[str, str]) -> Any:
    """Draw a line's segments, a dot where one is a single point; what the legend is to show."""
    handles = []
    for number, segment in enumerate(filter(None, line.segments)):
        points = [segment[i] for i in thin(segment)]
        gid = f"{'curve' if len(points) > 1 else 'dot'}-{index}-{number}"
        titles[gid] = line.label
        handles += axes.plot(
            *zip(*points, strict=True), gid=gid, linewidth=1.7, markersize=5,
            marker="o" if len(points) == 1 else "", color=LINE_COLOURS[index % len(LINE_COLOURS)],
            linestyle=DASHES[index // len(LINE_COLOURS) % len(DASHES)],
        )  # fmt: skip
    return handles[0]


def _end(line: Line) -> float:
    """The last value of a line."""
    return next(segment[-1][1] for segment in reversed(line.segments) if segment)


def _name_points(axes: Any, points: Sequence[Point], best: Sequence[int]) -> None:
    """Write each point's name where it covers least, the best ones' first.

    A name that ends up some way off is joined to its point by a thin line.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    strokes = [line.get_path().transformed(line.get_transform()) for line in axes.get_lines()]
    for bars in axes.collections:
        strokes += [path.transformed(bars.get_transform()) for path in bars.get_paths()]
    places = axes.transData.transform([(point.x, point.y) for point in points]).tolist()
    covered = [Bbox.from_bounds(left - 6, low - 6, 12, 12) for left, low in places]
    for index in sorted(range(len(points)), key=lambda i: (i not in best, i)):
        at = (points[index].x, points[index].y)
        label = axes.annotate(
            _cut(_one_line(points[index].label)), at, (0, 0), textcoords="offset points",
            va="bottom", gid=f"name-{index}", fontweight="bold" if index in best else "normal",
            arrowprops={"arrowstyle": "-", "color": COLOURS["muted"], "linewidth": 0.6,
                        "shrinkA": 0, "shrinkB": 5},
        )  # fmt: skip
        width, height = Text.get_window_extent(label).size
        left, low = places[index]
        boxes = [
            Bbox.from_bounds(left + x, low + y, width, height) for x, y in _around(width, height)
        ]
        box = min(boxes, key=lambda box: _objections(box, axes, covered, strokes))
        label.xyann = (box.x0 - left, box.y0 - low)
        far = not box.padded(9).contains(left, low)
        label.arrow_patch.set(gid=f"leader-{index}", visible=far)
        covered.append(box.padded(1))


def _around(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Where a label of a size may begin, from its point, the nearest first."""
    for x in (8, -8 - width):
        yield x, -height / 2
    for x in (-width / 2, 2, -2 - width):
        for y in (6, -6 - height):
            yield x, y
    for distance in (24, 38, 52, 70, 90, 115):
        for x in (8, -8 - width, -width / 2):
            for y in (distance, -distance):
                yield x, y - height / 2


def _objections(
    box: Any, axes: Any, covered: Sequence[Any], strokes: Sequence[Any]
) -> tuple[bool, int, int]:
    """What speaks against a label's place, the worst first: outside, on something, on a line."""
    within = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
    within &= axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
    crossed = sum(stroke.intersects_bbox(box, filled=False) for stroke in strokes)
    return not within, box.count_overlaps(covered), crossed


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


def _svg(figure: Any, name: str, description: str, titles: Mapping[str, str]) -> str:
    """The figure as an element of a page, with a description and with tooltips by id."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root.iter()):
        if element.get("id") in titles:
            title = ElementTree.Element("title")
            title.text = _one_line(titles[element.attrib["id"]])
            element.insert(0, title)
        _adapt(element, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": _one_line(description),
    }
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str) -> None:
    """Make an element one of HTML: ids are the figure's own, colours the page's.

    A style sheet would be the whole page's, all that is drawn lies within its axes, and ids that
    matplotlib counts name nothing.
    """
    element[:] = [child for child in element if not child.tag.endswith(("}style", "}clipPath"))]
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    attributes = {}
    for key, value in element.attrib.items():
        key = key.rpartition("}")[2]
        if key == "href":
            value = f"#{name}-{value.removeprefix('#')}"
        elif key == "id":
            value = f"{name}-{value}"
        elif key == "style":
            value = re.sub("#[0-9a-f]{6}", lambda match: f"var(--{_VARIABLES[match[0]]})", value)
        if key != "clip-path" and not (key == "id" and re.search(r"_\d+$", value)):
            attributes[key] = " ".join(value.split())
    element.attrib = attributes


_VARIABLES = {colour: name for name, colour in COLOURS.items()}

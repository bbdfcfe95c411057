"""The report of a study."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image

from rpiae.core.errors import CheckpointError, RpiaeError, RunError, UsageError
from rpiae.studies.comparing import best_rows, differing_fields, paired
from rpiae.studies.figures import (
    Axis,
    Line,
    Point,
    curves_figure,
    frontier_figure,
    pareto,
    thin,
)
from rpiae.studies.reading import read_results
from rpiae.studies.report import write_report
from rpiae.studies.results import Column, RowResults, RunResults, StudyResults
from rpiae.studies.statistics import Statistics, number
from rpiae.studies.tables import Table, warnings_of
from rpiae.studies.templating import clean, html_text, markdown_text, render

HOSTILE = "<script>alert('x')</script>&"
PROTOCOL = {"images": {"count": 100, "hash": "ab12"}, "dtype": "float32"}
COLUMNS = [
    {"metric": "psnr", "title": "PSNR", "unit": "dB", "better": "higher", "digits": 2},
    {"metric": "rfd[tiny]", "title": "rFD", "unit": "", "better": "lower", "digits": 1},
    {"metric": "kl", "title": "KL", "unit": "nats", "better": "", "digits": 1},
]
VOID = {"meta", "img", "br"}

Metrics = Mapping[str, float | None]


class Page(HTMLParser):
    """The tags of a page, checked to be balanced; its text, links, and rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.bold: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "strong":
            self.bold.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"nothing to close with </{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "strong" in self.open:
            self.bold[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def links(self) -> Iterator[str]:
        for _, attributes in self.tags:
            for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                if name in attributes:
                    yield attributes[name] or ""

    def row(self, name: str) -> list[str]:
        """The first row of a table whose first cell starts so."""
        return next(cells for cells in self.rows if cells[0].startswith(name))


class Folder:
    """A study's folder, made row by row."""

    def __init__(self, path: Path, **facts: Any) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.study: dict[str, Any] = {
            "format": 1, "name": "claims", "summary": "", "rows": [], "columns": COLUMNS,
            "command": "rpiae ablate claims.toml --out claims", "comparisons": [],
            "groups": {"main": "Main"}, **facts,
        }  # fmt: skip

    def row(self, name: str, seeds: Sequence[Metrics | str], **facts: Any) -> list[Path]:
        """Add a row; each seed has metrics, or is a state."""
        number_of_row = len(self.study["rows"])
        row: dict[str, Any] = {
            "name": name,
            "summary": f"about {name}",
            "groups": ["main"],
            "runs": [],
        }
        row |= {k: v for k, v in facts.items() if k in ("groups", "summary")}
        folders = []
        for seed, metrics in enumerate(seeds, start=facts.get("first_seed", 0)):
            folder = f"runs/{number_of_row}-seed{seed}"
            state = metrics if isinstance(metrics, str) else "done"
            error = "TrainingError: the loss is <NaN>" if state == "failed" else ""
            command = f"rpiae build --config {folder}/config.toml"
            row["runs"].append(
                {"seed": seed, "folder": folder, "command": command, "state": state, "error": error}
            )
            (self.path / folder).mkdir(parents=True)
            folders.append(self.path / folder)
            if not isinstance(metrics, str):
                evaluation = {
                    "format": 1, "metrics": metrics, "protocol": facts.get("protocol", PROTOCOL),
                    "warnings": facts.get("warnings", []),
                }  # fmt: skip
                (self.path / folder / "evaluation.json").write_text(json.dumps(evaluation))
        self.study["rows"].append(row)
        self.save()
        return folders

    def save(self) -> None:
        (self.path / "study.json").write_text(json.dumps(self.study))

    def page(self) -> Page:
        return Page(write_report(self.path)[0].read_text("utf-8"))

    def markdown(self) -> str:
        return write_report(self.path)[1].read_text("utf-8")


def psnr(*values: float) -> list[dict[str, float]]:
    return [{"psnr": value} for value in values]


def strip(path: Path, *, width: int = 140, height: int = 32, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def write_events(folder: Path, *stages: tuple[str, int, Sequence[tuple[int, float]]]) -> None:
    lines: list[str] = []
    for stage, steps, points in stages:
        lines.append(json.dumps({"event": "StageStarted", "stage": stage, "step": 0}))
        for step, value in points:
            row = {"stage": stage, "step": step}
            lines.append(json.dumps({"event": "StepDone", "terms": {"l1": 1.0}, **row}))
            lines.append(json.dumps({"event": "Evaluated", "metrics": {"psnr": value}, **row}))
        lines.append(json.dumps({"event": "StageEnded", "stage": stage, "steps": steps}))
    (folder / "events.jsonl").write_text("\n".join(lines) + '\n{"event": "Evalu')


def full_study(path: Path) -> Folder:
    study = Folder(
        path,
        summary="What does the pivot do?",
        frontier={"x": "rfd[tiny]", "y": "psnr"},
        comparisons=[{"name": "A & B", "first": HOSTILE, "second": "two", "metrics": ["psnr"]}],
        groups={"main": "Main", "other": "Other <b>"},
    )
    for name, seeds, group in (
        (HOSTILE, 3, "main"), ("two", 2, "main"), ("one", 1, "other"),
    ):  # fmt: skip
        metrics = [{"psnr": 30.0 + s, "rfd[tiny]": 5.0 - s, "kl": 100.0} for s in range(seeds)]
        folders = study.row(name, [*metrics, "failed"], groups=[group], warnings=["few <images>"])
        for folder in folders:
            strip(folder / "pictures" / "held-out.png", seed=len(name))
            write_events(folder, ("tune", 20, [(10, 20.0), (20, 21.0)]), ("decode", 9, [(9, 30.0)]))
            (folder / "config.toml").write_text('name = "<&>"\n')
            stages = [
                {"name": "tune", "seconds": 60.0, "images_per_second": 1000.0},
                {"name": "decode", "skipped": "no parameters"},
            ]
            (folder / "summary.json").write_text(json.dumps({"stages": stages}))
    strip(study.path / "originals.png")
    return study


# Statistics


def test_texts_of_one_two_and_three_seeds() -> None:
    assert Statistics(values=(31.2,)).text(1) == "31.2"
    assert Statistics(values=(31.2, 31.4)).text(1) == "31.2 / 31.4"
    assert Statistics(values=(31.08, 31.2, 31.32)).text(2) == "31.20 ± 0.12"
    assert Statistics(values=()).text(2) == "–"
    assert Statistics(values=(-0.001, -2.0)).text(1, signed=True) == "0.0 / −2.0"
    assert number(0.5, 1, signed=True) == "+0.5"


def test_the_spread_is_the_sample_deviation_and_needs_three() -> None:
    three = Statistics(values=(1.0, 2.0, 4.0))
    assert three.n == 3
    assert three.mean == pytest.approx(7 / 3)
    assert three.spread == pytest.approx(np.std(three.values, ddof=1))
    assert Statistics(values=(1.0, 2.0)).spread is None


def row_of(name: str, values: Mapping[int, float], metric: str = "psnr") -> RowResults:
    runs = (RunResults(seed=s, folder=Path(), metrics={metric: v}) for s, v in values.items())
    return RowResults(name=name, runs=tuple(runs))


def test_pairs_are_of_common_seeds() -> None:
    first = row_of("a", {2: 12.0, 0: 10.0, 1: 11.0})
    second = row_of("b", {1: 10.5, 2: 10.0, 3: 99.0})
    difference = paired(first, second, "psnr")
    assert dict(difference.by_seed) == {1: 0.5, 2: 2.0}
    statistics = difference.statistics
    assert (statistics.n, statistics.mean, statistics.spread) == (2, 1.25, None)
    assert paired(first, second, "ssim").statistics.n == 0


def test_best_rows_with_ties_as_written_and_lower_is_better() -> None:
    rows = [
        row_of("a", {0: 1.001}),
        row_of("b", {0: 1.004}),
        row_of("c", {0: 2.0}),
        row_of("d", {}),
    ]
    lower = Column(metric="psnr", title="", better="lower", digits=2)
    assert best_rows(rows, lower) == {"a", "b"}
    assert best_rows(rows, Column(metric="psnr", title="", better="lower", digits=3)) == {"a"}
    assert best_rows(rows, Column(metric="psnr", title="", better="higher")) == {"c"}
    assert best_rows(rows, Column(metric="psnr", title="")) == frozenset()
    assert best_rows(rows[2:], lower) == frozenset()


@pytest.mark.parametrize(
    ("directions", "expected"),
    [((True, True), (0, 3, 2)), ((False, True), (0,)), ((True, False), (1, 2)), ((False, False), (0, 1))],
)  # fmt: skip
def test_pareto(directions: tuple[bool, bool], expected: tuple[int, ...]) -> None:
    points = [(1.0, 9.0), (1.5, 1.0), (8.0, 2.0), (5.0, 5.0), (4.0, 4.0), (float("nan"), 99.0)]
    higher_x, higher_y = directions
    assert pareto(points, higher_x=higher_x, higher_y=higher_y) == expected


def test_pareto_keeps_equal_points_and_drops_the_dominated_on_one_side() -> None:
    assert pareto([(1.0, 1.0), (1.0, 1.0), (1.0, 0.5)]) == (0, 1)
    assert pareto([]) == ()


# Figures


def parsed(figure: str) -> ElementTree.Element:
    """A figure, which is HTML and XML alike."""
    Page(figure)
    return ElementTree.fromstring(figure)


def named(figure: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    """The groups of a figure called ``f`` whose id says that they are of a kind."""
    return [e for e in figure.iter("g") if e.get("id", "").startswith(f"f-{kind}-")]


def test_curves_are_thinned_and_keep_their_ends() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    kept = thin(points)
    assert (len(kept), kept[0], kept[-1]) == (60, 0, 999)
    figure = curves_figure("f", [Line(label="a", segments=(tuple(points),))], "step", "dB")
    (curve,) = named(parsed(figure), "curve")
    (path,) = curve.iter("path")
    assert path.attrib["d"].count("L") == 59
    assert len(figure) < 9000


def test_a_line_is_not_drawn_across_stages() -> None:
    segments = (((0.0, 1.0), (1.0, 2.0)), ((2.0, 1.0), (3.0, 3.0)), ((4.0, 1.0),))
    figure = parsed(curves_figure("f", [Line(label="a", segments=segments)], "step", "dB"))
    assert len(named(figure, "curve")) == 2
    (dot,) = named(figure, "dot")
    assert len(list(dot.iter("use"))) == 1


def test_lines_are_named_by_where_they_end_and_told_apart() -> None:
    lines = [Line(label=f"row {i}", segments=(((0.0, 0.0), (9.0, float(i))),)) for i in range(10)]
    figure = parsed(curves_figure("f", lines, "step", "dB"))
    texts = [element.text or "" for element in figure.iter("text")]
    assert [text for text in texts if text.startswith("row")] == [f"row {i}" for i in range(10)][
        ::-1
    ]
    assert [g.findtext("title") for g in named(figure, "curve")] == [f"row {i}" for i in range(10)]
    styles = [next(g.iter("path")).attrib["style"] for g in named(figure, "curve")]
    assert len(set(styles)) == 10


def test_error_bars_only_with_a_spread_and_the_front_joined() -> None:
    points = [
        Point(label="a", x=1.0, y=2.0, x_spread=0.1, y_spread=0.2),
        Point(label="b", x=2.0, y=1.0),
        Point(label="c <", x=0.5, y=0.5),
    ]
    axis = Axis(label="x & y")
    text = frontier_figure("f", points, axis, axis)
    figure = parsed(text)
    assert len(named(figure, "spread")) == 2
    assert (len(named(figure, "best")), len(named(figure, "other"))) == (2, 1)
    (front,) = (e for e in figure.iter("g") if e.get("id") == "f-front")
    assert next(front.iter("path")).attrib["d"].count("L") == 1
    assert "c &lt;" in text
    assert [g.findtext("title") for g in named(figure, "other")] == ["c <: 0.5, 0.5"]


def test_labels_do_not_cover_each_other() -> None:
    points = [Point(label=f"row-{i}", x=1 + i % 4 / 50, y=1 + i // 4 / 50) for i in range(12)]
    points.append(Point(label="far", x=3.0, y=3.0))
    figure = parsed(frontier_figure("f", points, Axis(label="x"), Axis(label="y")))
    labels = [next(group.iter("text")) for group in named(figure, "name")]
    assert len(labels) == 13
    joined = {group.attrib["id"] for group in named(figure, "leader")}
    assert "f-leader-12" not in joined, "there is room beside it"
    assert 6 <= len(joined) < 12
    boxes = [
        (float(t.attrib["x"]), float(t.attrib["y"]), float(t.attrib["x"]) + 6.5 * len(t.text), t.text)
        for t in labels if t.text
    ]  # fmt: skip
    for i, (left, low, right, text) in enumerate(boxes):
        for other_left, other_low, other_right, other in boxes[:i]:
            apart = abs(low - other_low) >= 12 or right <= other_left or other_right <= left
            assert apart, (text, other)


def test_one_point_alone_can_be_drawn() -> None:
    axis = Axis(label="x")
    assert "nan" not in frontier_figure("f", [Point(label="a", x=0.0, y=0.0)], axis, axis)
    assert "nan" not in curves_figure(
        "f", [Line(label="a", segments=(((0.0, 30.0),),))], "step", "dB"
    )


@pytest.mark.parametrize(
    "label",
    ["$x_1$", "_hidden", "\u4e2d\u6587", "a\udcff\ufffe\x00\u202eb", HOSTILE, "x" * 500, "a " * 250, "\n"],
)  # fmt: skip
def test_any_label_is_text_of_a_figure(label: str) -> None:
    axis = Axis(label=label)
    figures = (
        frontier_figure("f", [Point(label=label, x=1.0, y=2.0)], axis, axis),
        curves_figure("f", [Line(label=label, segments=(((0.0, 1.0), (1.0, 2.0)),))], label, label),
    )
    for figure, tooltip in zip(figures, (f"{label}: 1, 2", label), strict=True):
        figure.encode("utf-8")
        tags = {tag for tag, _ in Page(figure).tags}
        assert tags <= {"svg", "defs", "g", "path", "use", "text", "title"}
        titles = [element.text or "" for element in parsed(figure).iter("title")]
        assert titles == [" ".join(clean(tooltip).split())]


def test_figures_depend_on_their_data_and_name_alone() -> None:
    axis, points = Axis(label="x"), [Point(label="a", x=1.0, y=2.0), Point(label="b", x=2.0, y=1.0)]
    first = frontier_figure("f", points, axis, axis)
    with matplotlib.rc_context({"svg.fonttype": "path", "lines.linewidth": 9, "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        assert frontier_figure("f", points, axis, axis) == first
        assert dict(matplotlib.rcParams) == before
    other = parsed(frontier_figure("g", points, axis, axis))
    ids = [{e.attrib["id"] for e in f.iter() if "id" in e.attrib} for f in (parsed(first), other)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


# The page


def test_the_page_is_whole_and_alone(tmp_path: Path) -> None:
    text = write_report(full_study(tmp_path).path)[0].read_text("utf-8")
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert text.startswith("<!DOCTYPE html>")
    assert "script" not in names
    assert "link" not in names
    assert HOSTILE in page.text
    assert HOSTILE not in text
    assert "Other <b>" in page.text
    links = list(page.links())
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", text)
    anchors = {attributes["id"] for _, attributes in page.tags if attributes.get("id")}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert names.count("title") >= 1
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert all(a.get("aria-label") and a["role"] == "img" for tag, a in page.tags if tag == "svg")
    assert names.count("h1") == 1


def test_colours_of_figures_are_the_pages_in_light_and_dark(tmp_path: Path) -> None:
    text = write_report(full_study(tmp_path).path)[0].read_text("utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    light, dark, _ = (
        set(re.findall(r"--([\w-]+):", b)) for b in re.findall(r":root {([^}]+)}", style)
    )
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    assert {"ink", "paper", "accent", "c0"} <= used
    assert used <= light == dark
    figures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}", figures)


def test_ids_are_unique_on_a_page(tmp_path: Path) -> None:
    page = full_study(tmp_path).page()
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20


def test_every_part_of_the_page_is_there(tmp_path: Path) -> None:
    page = full_study(tmp_path).page()
    assert [tag for tag, _ in page.tags].count("svg") == 1 + 2  # the frontier, curves per table
    assert [tag for tag, _ in page.tags].count("img") == 1 + 3  # the originals, a strip per row
    for text in (
        "What does the pivot do?", "rpiae ablate claims.toml --out claims", "6 of 9 runs done",
        "3 failed", "6 min training", "360,000 image passes", "images.count", "few <images> all runs",
        "TrainingError: the loss is <NaN>", "rpiae build --config runs/0-seed0/config.toml",
        'name = "<&>"',
    ):  # fmt: skip
        assert text in page.text, text


def test_headers_say_unit_extractor_and_the_better_way(tmp_path: Path) -> None:
    study = full_study(tmp_path)
    assert study.page().row("configuration")[2:] == ["PSNR\xa0↑dB", "rFD\xa0↓[tiny]", "KLnats"]
    assert "| PSNR ↑ (dB) | rFD ↓ ([tiny]) | KL (nats) |" in study.markdown()


def test_bold_is_on_the_best_ties_included(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("a", [{"psnr": 30.001, "rfd[tiny]": 2.0, "kl": 1.0}])
    study.row("b", [{"psnr": 29.999, "rfd[tiny]": 1.0, "kl": 2.0}])
    study.row("c", [{"psnr": 25.0, "rfd[tiny]": 3.0, "kl": 3.0}])
    study.row("d", ["waiting"])
    page = study.page()
    assert page.bold == ["The study is not finished:", "30.00", "30.00", "1.0"]
    assert page.row("d")[1:] == ["0 of 1", "–", "–", "–"]
    markdown = study.markdown()
    assert "| a (about a) | 1 | **30.00** | 2.0 | 1.0 |" in markdown
    assert "| b (about b) | 1 | **30.00** | **1.0** | 2.0 |" in markdown
    assert "| d (about d; waiting: seed 0) | 0 of 1 | – | – | – |" in markdown


def test_numbers_by_count_of_seeds_in_the_tables(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("one", psnr(31.2))
    study.row("two", psnr(31.2, 31.4))
    study.row("three", psnr(31.08, 31.2, 31.32))
    folders = study.row("fewer", psnr(30.0, 31.0))
    (folders[1] / "evaluation.json").write_text('{"metrics": {"kl": 2.0, "psnr": null}}')
    page = study.page()
    assert page.row("one")[2] == "31.20"
    assert page.row("two")[2] == "31.20 / 31.40"
    assert page.row("three")[2] == "31.20 ± 0.12"
    assert page.row("fewer")[2] == "30.00n = 1"


def test_paired_differences_in_both_reports(tmp_path: Path) -> None:
    comparison = {"name": "one against two", "first": "one", "second": "two", "metrics": ["psnr"]}
    lost = {"name": "lost", "first": "one", "second": "three", "metrics": []}
    study = Folder(tmp_path, comparisons=[comparison, lost])
    study.row("one", psnr(31.0, 32.0, 33.5, 40.0))
    study.row("two", psnr(30.5, 31.0, 34.0, 1.0)[:3])
    cells = study.page().row("one against two")
    assert cells[2:] == ["+0.50 / +1.00 / −0.50seeds 0 / 1 / 2", "+0.33 ± 0.76", "3", "2 of 3"]
    assert study.page().row("lost")[0] == "lostno row is named three"
    assert "| one against two (one − two) | PSNR ↑ (dB) | +0.50 / +1.00 / −0.50" in study.markdown()


def test_in_favour_counts_lower_where_lower_is_better(tmp_path: Path) -> None:
    comparison = {"name": "pair", "first": "one", "second": "two", "metrics": ["rfd[tiny]"]}
    study = Folder(tmp_path, comparisons=[comparison])
    study.row("one", [{"rfd[tiny]": 1.0}, {"rfd[tiny]": 5.0}], first_seed=1)
    study.row("two", [{"rfd[tiny]": 9.0}, {"rfd[tiny]": 2.0}])
    assert study.page().row("pair")[2:] == ["−1.0seed 1", "−1.0", "1", "1 of 1"]


def test_frontier_joins_by_the_columns_directions(tmp_path: Path) -> None:
    study = Folder(tmp_path, frontier={"x": "rfd[tiny]", "y": "psnr"})
    for name, x, y in (("a", 1.0, 20.0), ("b", 2.0, 30.0), ("c", 3.0, 25.0)):
        study.row(name, [{"rfd[tiny]": x, "psnr": y}])
    study.row("d", psnr(99.0))
    (label,) = (a["aria-label"] for tag, a in study.page().tags if tag == "svg")
    assert label == "PSNR (dB) ↑ against rFD [tiny] ↓; not dominated: a, b"
    assert "Without a number: d." in study.page().text


def test_different_protocols_are_warned_of(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("a", psnr(1.0))
    study.row("b", psnr(1.0, 2.0), protocol={**PROTOCOL, "images": {"count": 50, "hash": "ab12"}})
    folders = study.row("c", psnr(1.0, 2.0))
    other = {"metrics": {"psnr": 1.0}, "protocol": {"images": {"count": 100, "hash": "ab12"}}}
    (folders[1] / "evaluation.json").write_text(json.dumps(other))
    (count, dtype) = differing_fields(read_results(tmp_path))
    assert count.field == "images.count"
    assert dict(count.values) == {"100": ("a", "c"), "50": ("b",)}
    assert dict(dtype.values) == {
        "float32": ("a", "b", "c (seed 0)"),
        "not given": ("c (seed 1)",),
    }
    page = study.page()
    assert "Not all runs were measured alike" in page.text
    assert "images.count: 100 in a, c; 50 in b" in page.text
    assert ["images.hash", "ab12"] in page.rows
    assert "images.count: 100 in a, c; 50 in b" in study.markdown()


def test_distances_that_were_measured_differently_are_not_compared(tmp_path: Path) -> None:
    column = {"metric": "rfd[tiny]", "title": "rFD", "better": "lower"}
    comparison = {"name": "c", "first": "a", "second": "b", "metrics": ["rfd[tiny]", "psnr"]}
    study = Folder(tmp_path, columns=[column], comparisons=[comparison])
    for name, value, count in (("a", 1.0, 2000), ("b", 2.0, 1000)):
        facts = {"extractor": {"extractor": "encoder"}, "count": count}
        protocol = {"metrics": {"rfd[tiny]": facts, "psnr": {}}}
        study.row(name, [{"rfd[tiny]": value, "psnr": value}], protocol=protocol)
    page = study.page()
    # The warning about protocols is bold, no value is.
    assert not [text for text in page.bold if text in ("1.000", "2.000")]
    first, second = (cells for cells in page.rows if cells and cells[0] == "ca − b")
    assert "not compared: count: 2000 and 1000" in first[2]
    assert first[4] == "0"
    assert second[2].startswith("−1.00")
    for row in study.study["rows"]:
        path = tmp_path / row["runs"][0]["folder"] / "evaluation.json"
        tree = json.loads(path.read_text())
        tree["protocol"]["metrics"]["rfd[tiny]"]["count"] = 1000
        path.write_text(json.dumps(tree))
    assert study.page().bold == ["1.000"]


@pytest.mark.parametrize(
    ("condition", "values"),
    [
        ("crop", ("ADM, centre crop 32×32", "centre crop 32×32")),
        ("round", ("nearest", "truncate")),
        ("precision", ("fp32", "bf16")),
        ("count", (8, 9)),
        ("images_sha256", ("1f", "2e")),
    ],
)
def test_no_number_is_compared_under_other_conditions(
    tmp_path: Path, condition: str, values: tuple[Any, Any]
) -> None:
    comparison = {"name": "c", "first": "a", "second": "b", "metrics": ["psnr"]}
    study = Folder(tmp_path, comparisons=[comparison])
    for name, mean, value in zip("ab", (1.0, 2.0), values, strict=True):
        study.row(name, psnr(mean), protocol={condition: value, "metrics": {}})
    page = study.page()
    assert f"not compared: {condition}: {values[0]} and {values[1]}" in page.text
    assert not [text for text in page.bold if text in ("1.00", "2.00")]


def test_a_study_reports_what_it_asked_for_among_all_that_was_measured(tmp_path: Path) -> None:
    """Somebody measured a run again by hand; both evaluations are in its file."""
    asked, other = {"metrics": ["psnr"]}, {"metrics": ["psnr"], "data": "folder:photos"}
    study = Folder(tmp_path, evaluation=asked)
    (folder,) = study.row("a", psnr(0.0))
    found = [
        {"config": config, "metrics": {"psnr": value}, "protocol": {}, "warnings": []}
        for config, value in ((asked, 20.0), (asked, 21.0), (other, 30.0))
    ]
    tree = {"format": 2, **found[-1], "evaluations": found}
    (folder / "evaluation.json").write_text(json.dumps(tree))
    (row,) = read_results(tmp_path).rows
    assert row.by_seed("psnr") == {0: 21.0}
    tree["evaluations"] = [1]
    (folder / "evaluation.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="is damaged: evaluations is no list of objects"):
        read_results(tmp_path)
    tree["evaluations"] = [found[-1]]
    (folder / "evaluation.json").write_text(json.dumps(tree))
    (row,) = read_results(tmp_path).rows
    assert row.by_seed("psnr") == {}
    assert "measured otherwise" in row.runs[0].warnings[0]


def test_a_metric_that_a_run_has_not_got_is_no_difference(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    facts = {"kl": {"bits": 16}, "psnr": {"peak": 1}}
    study.row("a", [{"psnr": 1.0, "kl": 2.0}], protocol={"metrics": facts})
    study.row("b", psnr(2.0), protocol={"metrics": {"psnr": {"peak": 1}}})
    assert not differing_fields(read_results(tmp_path))
    study.row("c", psnr(2.0), protocol={"metrics": {"psnr": {"peak": 255}}})
    (found,) = differing_fields(read_results(tmp_path))
    assert found.field == "metrics.psnr.peak"


def test_equal_protocols_are_told_once_without_a_warning(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("a", psnr(1.0, 2.0))
    study.row("b", psnr(1.0))
    page = study.page()
    assert "measured alike" not in page.text
    assert page.rows.count(["images.count", "100"]) == 1
    assert differing_fields(read_results(tmp_path)) == ()


def test_warnings_are_told_once_with_their_runs(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("a", psnr(1.0, 2.0), warnings=["too few"])
    study.row("b", psnr(1.0))
    assert warnings_of(read_results(tmp_path)) == {"too few": "a (seed 0), a (seed 1)"}


# Studies that are not whole


def test_an_unfinished_study_has_a_report(tmp_path: Path) -> None:
    study = Folder(tmp_path, frontier={"x": "kl", "y": "psnr"})
    folders = study.row("mixed", [{"psnr": 30.0}, "failed", "running", {"psnr": 31.0}])
    (folders[3] / "evaluation.json").unlink()
    study.row("later", ["waiting", "waiting"])
    study.row("empty", [])
    page = study.page()
    state = "failed: seed 1 · running: seed 2 · not evaluated: seed 3"
    assert page.row("mixed")[:3] == [f"mixedabout mixed{state}", "1 of 4", "30.00"]
    assert "waiting: seeds 0, 1" in page.row("later")[0]
    assert "no runs" in page.row("empty")[0]
    assert "1 running and 2 waiting" in page.text
    assert "No row has both KL and PSNR yet." in page.text
    assert "TrainingError: the loss is <NaN>" in page.text
    assert "TrainingError: the loss is <NaN>" in study.markdown()


def test_a_study_without_rows_has_a_report(tmp_path: Path) -> None:
    study = Folder(tmp_path, columns=[], groups={})
    study.save()
    assert "The study has no rows." in study.page().text


def test_an_evaluation_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("a", psnr(30.0))
    study.study["rows"][0]["runs"][0]["state"] = "failed"
    study.save()
    assert read_results(tmp_path).rows[0].measured == ()


def test_without_columns_every_metric_is_one(tmp_path: Path) -> None:
    study = Folder(tmp_path, columns=[])
    study.row("a", [{"psnr": 31.234, "probe[tiny]": 0.81234}])
    study.row("b", [{"fid": 123.456}])
    assert study.page().row("configuration")[2:] == ["psnr", "probe[tiny]", "fid"]
    assert study.page().row("a")[2:] == ["31.23", "0.812", "–"]
    assert study.page().row("b")[4] == "123.5"


def test_a_nan_was_not_measured(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("a", [{"psnr": float("nan"), "kl": 1.0}])
    assert study.page().row("a")[2:] == ["–", "–", "1.0"]


def test_curves_join_stages_as_the_runs_own_do(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    (folder,) = study.row("a", psnr(30.0))
    write_events(folder, ("tune", 20, [(10, 20.0), (20, 21.0)]), ("decode", 9, [(9, 30.0)]))
    (run,) = read_results(tmp_path).rows[0].runs
    assert run.curves == {"tune": ((10, 20.0), (20, 21.0)), "decode": ((29, 30.0),)}


def test_pictures_come_from_the_first_seed_that_has_some(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    folders = study.row("a", ["failed", {"psnr": 1.0}])
    strip(folders[1] / "pictures" / "held-out.png")
    study.row("b", ["waiting"])
    (damaged,) = study.row("c", psnr(1.0))
    (damaged / "pictures").mkdir()
    (damaged / "pictures" / "held-out.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    page = study.page()
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["Reconstructions by a (seed 1)"]
    assert ["b", "no pictures"] in page.rows
    assert ["c", "held-out.png is damaged"] in page.rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.json", "{"),
        ("study.json", "[]"),
        ("study.json", '{"format": 2}'),
        ("study.json", '{"format": 1, "name": 3}'),
        ("study.json", '{"format": 1, "name": "a", "rows": [1]}'),
        ("study.json", '{"format": 1, "name": "a", "rows": [{"name": "b", "runs": [{"folder": "c"}]}]}'),
        ("study.json", '{"format": 1, "name": "a", "columns": [{"metric": "psnr", "better": "up"}]}'),
        ("study.json", '{"format": 1, "name": "a", "frontier": 4, "groups": [], "rows": {}}'),
        ("evaluation.json", '{"metrics": {"psnr": 31.'),
        ("evaluation.json", '{"metrics": [31.0]}'),
        ("evaluation.json", '{"metrics": {"psnr": "31"}}'),
        ("evaluation.json", '{"metrics": {"psnr": true}}'),
        ("evaluation.json", '{"metrics": {}, "warnings": [1]}'),
        ("evaluation.json", "\x00"),
        ("summary.json", "{'stages': 1}"),
        ("summary.json", '{"stages": [{"seconds": "1"}]}'),
        ("summary.json", '{"stages": [null]}'),
    ],
)  # fmt: skip
def test_damaged_files_give_one_clear_line(tmp_path: Path, name: str, content: str) -> None:
    study = Folder(tmp_path)
    (folder,) = study.row("a", psnr(30.0))
    path = (tmp_path if name == "study.json" else folder) / name
    path.write_text(content)
    with pytest.raises(CheckpointError) as raised:
        write_report(tmp_path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    assert re.search("is damaged|of format 2|is not a JSON file", message)
    assert "' object" not in message, "that is Python's word for it"
    assert not (tmp_path / "report.html").exists()


def test_no_study_is_said_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no study.*rpiae ablate"):
        read_results(tmp_path)
    with pytest.raises(RpiaeError, match="holds no study"):
        read_results(tmp_path / "nowhere")


# Writing


def test_the_second_report_replaces_the_first(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("early", ["waiting"])
    first = write_report(tmp_path)
    assert first == (tmp_path / "report.html", tmp_path / "report.md")
    before = [path.read_text("utf-8") for path in first]
    study.row("the second", psnr(30.0))
    after = [path.read_text("utf-8") for path in write_report(tmp_path)]
    assert all("the second" not in text for text in before)
    assert all("the second" in text for text in after)
    assert not list(tmp_path.glob("*.part"))
    assert after == [path.read_text("utf-8") for path in write_report(tmp_path)]


def test_a_report_elsewhere(tmp_path: Path) -> None:
    study = Folder(tmp_path / "study")
    study.row("a", psnr(30.0))
    page, markdown = write_report(study.path, out=tmp_path / "new" / "folder")
    assert page.parent == markdown.parent == tmp_path / "new" / "folder"
    assert not (study.path / "report.html").exists()
    with pytest.raises(UsageError, match="is a file"):
        write_report(study.path, out=page)
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    with pytest.raises(RunError, match="cannot write"):
        write_report(study.path, out=tmp_path / "taken")


def test_many_large_pictures_are_made_smaller_and_it_is_said(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    for index in range(35):
        (folder,) = study.row(f"row {index}", psnr(float(index)))
        strip(folder / "pictures" / "held-out.png", width=572, height=32, seed=index)
    path = write_report(tmp_path)[0]
    assert path.stat().st_size < 3_000_000
    page = Page(path.read_text("utf-8"))
    assert "They are made smaller here" in page.text
    assert [tag for tag, _ in page.tags].count("img") == 35
    assert all(link.startswith(("data:image/jpeg", "#")) for link in page.links())


def test_markdown_takes_nothing_in_a_name_for_its_own(tmp_path: Path) -> None:
    study = Folder(tmp_path)
    study.row("a|b *c* `d` <i>\ne", psnr(30.0, 31.0), summary="")
    (line,) = (line for line in study.markdown().splitlines() if line.startswith("| a"))
    assert line == r"| a\|b \*c\* \`d\` &lt;i&gt; e | 2 | 30.00 / 31.00 | – | – |"


#: What somebody could send in a study that means something to Markdown, HTML or GitHub.
SNIPPETS = (
    "[x](javascript:alert(1))", "![x](http://a/b.png)", "<script>alert(1)</script>", "<b>", "</td>",
    "a|b", "||", "`c`", "```", "~~~", "**d**", "_e_", "https://example.com", "www.example.com",
    "me@example.com", "<https://example.com>", "[a]: http://b", "# head", "- item", "1. one", "+ x",
    "---", "===", "$x$", "&lt;", "&#x3c;", "\\", "\n", "\r", "\t", "\u2028", "\x00", "\udcff", "\u202e", "end ##",
)  # fmt: skip
hostile = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=8)), max_size=6).map(
    "".join
)


@given(hostile)
def test_any_text_is_one_cell_of_markdown_with_nothing_active(text: str) -> None:
    plain = markdown_text(text)
    plain.encode("utf-8")
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parsed = parser.parse(f"| a | b |\n| :-- | --: |\n| {plain} | 2 |\n")
    assert [token.type for token in parsed].count("td_open") == 2
    assert not strange(parsed), plain
    for block in (plain, f"- {plain}", f"# {plain}", f"- **a** {plain}"):
        kinds = {
            token.type.removesuffix("_open").removesuffix("_close") for token in parser.parse(block)
        }
        assert kinds <= {"paragraph", "inline", "bullet_list", "list_item", "heading"}, block
        assert block.startswith(("- ", "# ")) or kinds <= {"paragraph", "inline"}, block
        assert not strange(parser.parse(block)), block
    shown = "".join(t.content for token in parser.parse(plain or "x") for t in token.children or ())
    assert shown == (" ".join(clean(" ".join(text.split())).split()) or "x")


def strange(tokens: Sequence[Any]) -> set[str]:
    """Kinds of inline elements that are no text, and links that GitHub would make of text."""
    inline = [child for token in tokens for child in token.children or ()]
    usual = {"text", "text_special", "strong_open", "strong_close"}
    return {child.type for child in inline if child.type not in usual}


def test_a_template_escapes_what_it_prints_and_knows_what_it_names() -> None:
    values: dict[str, Any] = dict.fromkeys(("open_runs", "facts", "tables", "failures", "warnings", "differing", "curves"), ())  # fmt: skip
    values |= {"strips": (), "smaller": False, "frontier": None, "differences": None}
    values["shared_table"] = Table(head=(), body=())
    values["study"] = StudyResults(folder=Path(), name="<b>*c*", summary=Markup("<i>ours</i>"))
    page, markdown = render("report.html", values), render("report.md", values)
    assert "<h1>&lt;b&gt;*c*</h1>" in page
    assert "# &lt;b&gt;\\*c\\*" in markdown
    assert all("<i>ours</i>" in text for text in (page, markdown))
    del values["facts"]
    for name in ("report.html", "report.md"):
        with pytest.raises(UndefinedError, match="'facts' is undefined"):
            render(name, values)


def test_drawing_and_templates_are_loaded_when_a_report_is_written() -> None:
    code = (
        "import sys; import rpiae.studies.report; "
        "print({'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@given(hostile)
def test_any_text_is_text_of_a_page(text: str) -> None:
    made = f'<p title="{html_text(text)}">{html_text(text)}</p>'
    made.encode("utf-8")
    page = Page(made)
    assert [tag for tag, _ in page.tags] == ["p"]
    assert not list(page.links())
    assert page.text == clean(text).replace("\r\n", "\n").replace("\r", "\n")


def test_nothing_in_a_study_is_active_in_its_reports(tmp_path: Path) -> None:
    bad = "[x](javascript:alert(1)) <img src=x onerror=y> | `k` https://a.b\udcff\n# h"
    study = Folder(tmp_path, name=bad, summary=bad, command=bad, groups={"main": bad})
    study.row(bad, [*psnr(30.0), "failed"], summary=bad, warnings=[bad])
    study.study["rows"][0]["runs"][1]["error"] = bad
    study.save()
    page, markdown = write_report(tmp_path)
    tags = {tag for tag, _ in Page(page.read_text("utf-8")).tags}
    assert "img" not in tags
    assert "onerror=y" not in {
        name for _, attributes in Page(page.read_text("utf-8")).tags for name in attributes
    }
    parser = MarkdownIt("commonmark").enable("table")
    parsed = parser.parse(markdown.read_text("utf-8"))
    assert not {t.type for token in parsed for t in token.children or ()} & {
        "link_open",
        "image",
        "html_inline",
    }
    assert "html_block" not in {token.type for token in parsed}


@pytest.mark.parametrize("folder", ["/etc", "../other", "runs/../../x", ""])
def test_a_study_names_no_folders_outside_its_own(tmp_path: Path, folder: str) -> None:
    study = Folder(tmp_path)
    study.row("a", psnr(30.0))
    study.study["rows"][0]["runs"][0]["folder"] = folder
    study.save()
    with pytest.raises(CheckpointError, match="expected one below the study's"):
        write_report(tmp_path)

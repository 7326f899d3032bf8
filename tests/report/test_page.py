"""The page of a sweep: one file that opens offline, says what the numbers say, and runs nobody's markup."""

import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from PIL import Image

from eagleray.app.conclude import conclude
from eagleray.report.analysis import Analysis, analyse
from eagleray.report.drawing import parallel_coordinates
from eagleray.report.finding import finding
from eagleray.report.leaderboard import TrialResult
from eagleray.report.page import page
from recorded_runs import recorded_sweep

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>\'"&'


class Page(HTMLParser):
    """Collects what a browser would see; every element that is opened is closed."""

    EMPTY = ("meta", "img", "line", "circle")

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # the element, and its text
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def trials(key: str = "t", values: tuple[Any, ...] = (0.1, 0.2, 0.5), **more: Any) -> list[TrialResult]:
    return [
        TrialResult(
            f"{n:03d}-seed{s}", {key: value, **more}, str(n), f"{n:03d}", s, metrics={"knn": 0.5 + n / 10 + s / 50}
        )
        for n, value in enumerate(values)
        for s in range(2)
    ]  # fmt: skip


def found(results: list[TrialResult], mode: Any = "max", binned: tuple[str, ...] = ()) -> Analysis:
    return analyse(results, list(results[0].params), "knn", mode, binned)


def test_the_page_says_what_the_analysis_says(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "map.png")
    floor = [TrialResult("raw", {}, "raw digits", "raw pixels", s, "pixels", metrics={"knn": 0.4}) for s in range(2)]
    analysis = found([*trials(), *floor])
    shown = Page(
        page(
            analysis, name="temperature", question="Which?", notes=["003 failed"], settings={"epochs": 10},
            pictures={"the map": tmp_path / "map.png"},
        )
    )  # fmt: skip
    assert shown.text("h1") == shown.text("title")[:1] == ["temperature"]
    assert finding(analysis) in shown.text("p")
    assert shown.text("h2") == [
        "Leaderboard", "Notes", "Every point", "What made the difference", "Pictures", "Settings"
    ]  # fmt: skip
    assert shown.text("li") == ["003 failed"]
    cells = shown.text("td")
    for row in analysis.rows:
        assert {row.name, row.measured} <= set(cells)
    assert {"epochs", "10"} <= set(cells)
    bars = [each["aria-label"] for each in shown.all("svg") if str(each["class"]).startswith("bar")]
    assert bars == [f"knn {row.measured}" for row in analysis.rows]
    assert [each["alt"] for each in shown.all("img")] == ["the map"]


def test_the_page_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "map.png")
    html = page(found(trials()), name="s", question="", pictures={"m": tmp_path / "map.png"})
    shown = Page(html)
    assert {"script", "link", "iframe", "object"}.isdisjoint({tag for tag, _ in shown.elements})
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"base64,[\w+/=]+", "", html))
    assert all(str(each["src"]).startswith("data:image/png;base64,") for each in shown.all("img"))
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]
    policy = next(each["content"] for each in shown.all("meta") if each.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_markup_in_names_values_and_questions_is_text(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "map.png")
    evil = [
        TrialResult(EVIL, {EVIL: f"{EVIL}{n}"}, str(n), f"{n}{EVIL}", 0, metrics={"knn": n / 10, EVIL: 1.0})
        for n in range(3)
    ]
    floor = TrialResult("f", {}, EVIL, EVIL, 0, "pixels", metrics={"knn": 0.1})
    html = page(
        found([*evil, floor]), name=EVIL, question=EVIL, notes=[EVIL], settings={EVIL: EVIL},
        pictures={EVIL: tmp_path / "map.png"},
    )  # fmt: skip
    shown = Page(html)
    assert "script" not in {tag for tag, _ in shown.elements}
    assert len(shown.all("img")) == 1
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]
    assert "<script" not in html
    assert shown.text("h1") == [EVIL]
    assert f"0{EVIL}" in shown.text("td")


# --- parallel coordinates --------------------------------------------------------------------------------------


def lines_of(analysis: Analysis) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each line, by the name of its row."""
    shown, lines = Page(parallel_coordinates(analysis)), {}
    titles = [text for tag, text in shown.texts if tag == "title"]
    for title, line in zip(titles, shown.all("polyline"), strict=True):
        points = [tuple(map(float, point.split(","))) for point in str(line["points"]).split()]
        lines[title.partition(":")[0]] = points
    return lines


def test_every_point_is_a_line_over_its_values_to_its_metric():
    results = trials(flip=0.5)
    lines = lines_of(found(results))
    assert set(lines) == {"000", "001", "002"}
    assert all(len(points) == 3 for points in lines.values())
    heights = [lines[name][0][1] for name in ("000", "001", "002")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.1), "listed values are evenly spaced"
    assert heights[0] > heights[2], "larger values are higher"
    reached = [lines[name][-1][1] for name in ("000", "001", "002")]
    assert reached[0] > reached[1] > reached[2], "better ones are higher"


def test_the_best_end_is_at_the_top_and_the_best_line_stands_out():
    analysis = found(trials(), mode="min")
    lines = lines_of(analysis)
    assert lines["000"][-1][1] < lines["002"][-1][1]
    best = [each for each in Page(parallel_coordinates(analysis)).all("polyline") if each.get("class") == "best"]
    assert len(best) == 1
    assert analysis.winner is not None
    assert analysis.winner.name == "000"


def test_values_of_a_range_over_decades_are_on_a_logarithmic_scale():
    lines = lines_of(found(trials(values=(0.001, 0.01, 0.1)), binned=("t",)))
    heights = [lines[name][0][1] for name in ("000", "001", "002")]
    assert heights[1] == pytest.approx(fmean((heights[0], heights[2])), abs=0.1)
    lines = lines_of(found(trials(values=(1.0, 1.2, 2.0)), binned=("t",)))
    heights = [lines[name][0][1] for name in ("000", "001", "002")]
    assert (heights[0] - heights[1]) / (heights[0] - heights[2]) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("values", [("crop", "crop+flip", "flip"), (None, 0.5, 1), (True, False, True)], ids=str)
def test_any_kind_of_value_has_a_place(values: tuple[Any, ...]):
    assert len(lines_of(found(trials(values=values)))) == 3


def test_one_point_needs_no_drawing():
    assert parallel_coordinates(found(trials(values=(1,)))) == ""
    assert "Every point" not in page(found(trials(values=(1,))), name="s", question="")


# --- of a real sweep -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["", "trials/000-seed0"], ids=["whole", "without the first trial's pictures"])
def test_a_concluded_sweep_has_its_page_with_its_pictures(tmp_path: Path, broken: str):
    sweep, parent = recorded_sweep(tmp_path / "runs/s/1")
    for child in parent.children():
        if child.kind == "trial" and not (broken and child.directory.match(broken)):
            Image.new("RGB", (4, 4)).save(child.artifacts / "views.png")
    conclude(sweep, parent)
    shown = Page((parent.artifacts / "report.html").read_text())
    captions = shown.text("figcaption")
    views = {"the views of 000", "the views of 001", "the views of 002", "the views of 003"}
    assert captions[0] == "knn by what was varied"
    assert set(captions[1:]) == (views - {"the views of 000"} if broken else views)
    assert {"vary.augment.flip", "[0, 0.5]", "method.name", "simclr"} <= set(shown.text("td"))
    text = (parent.artifacts / "report.md").read_text()
    assert "heatmap.png beside this file shows knn by what was varied; report.html holds it too." in text
    assert "![" not in text, "MLflow would show the words alone"

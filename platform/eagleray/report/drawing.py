"""Drawings of a sweep as SVG for its page: no picture files, no script."""

import math
from collections.abc import Sequence
from html import escape
from statistics import fmean
from typing import Any, Literal

from eagleray.report.analysis import Analysis
from eagleray.report.leaderboard import Row
from eagleray.report.numbers import distinct_texts, number

Kind = Literal["listed", "drawn", "metric"]  # the values of an axis: of a list, of a range, or measured
WIDTH, HEIGHT, TOP, SIDE = 880, 300, 44, 70  # of the parallel coordinates, in pixels
BAR, BAR_HEIGHT = 180, 16  # of one interval of the leaderboard
MOST_TICKS = 12  # values that an axis names
# From the worst to the best, readable on light and dark ground.
COLOURS = ("#7a5195", "#3f6fb5", "#1f9e89", "#7fb800", "#e0a100")


def interval_bars(analysis: Analysis) -> list[str]:
    """Draw the mean and interval of each row on one scale; a row without a mean has an empty one."""
    ends = [end for row in analysis.rows if row.values for end in _ends(row)]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    return [_bar(row, analysis.metric, low, high) if row.values else "" for row in analysis.rows]


def _bar(row: Row, metric: str, low: float, high: float) -> str:
    left, right = _ends(row)
    first, middle, last = (_place(at, low, high) * (BAR - 12) + 6 for at in (left, fmean(row.values), right))
    y = BAR_HEIGHT / 2
    label = escape(f"{metric} {row.measured}")
    return (
        f'<svg class="bar{" floor" if row.floor else ""}" width="{BAR}" height="{BAR_HEIGHT}" role="img" '
        f'aria-label="{label}"><title>{label}</title>'
        f'<line x1="{first:.1f}" x2="{last:.1f}" y1="{y}" y2="{y}"/><circle cx="{middle:.1f}" cy="{y}" r="4"/></svg>'
    )


def parallel_coordinates(analysis: Analysis) -> str:
    """Draw a line for each point over its varied values to its metric.

    The best end of the metric is at the top. It is empty for fewer than two points.
    """
    if len(analysis.tried) < 2 or not analysis.varied:
        return ""
    axes, metric = axes_of(analysis)
    places = [SIDE + number * (WIDTH - 2 * SIDE) / len(axes) for number in range(len(axes) + 1)]
    drawn = [_line(row, places, axes, metric, analysis) for row in reversed(analysis.tried)]
    labels = [axis.drawn(x) for x, axis in zip(places, [*axes, metric], strict=True)]
    keys = escape(", ".join(analysis.varied))
    return (
        f'<svg class="wide" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(analysis.metric)} of every '
        f'point over {keys}; the leaderboard has the same numbers">{"".join([*drawn, *labels])}</svg>'
    )


def axes_of(analysis: Analysis) -> tuple[list["Axis"], "Axis"]:
    """Return an axis for each varied key, and that of the metric."""
    axes = [
        Axis(key, [row.params[key] for row in analysis.tried], "drawn" if key in analysis.binned else "listed")
        for key in analysis.varied
    ]
    return axes, Axis(analysis.metric, [row.mean for row in analysis.tried], "metric", analysis.mode == "min")


class Axis:
    """One axis: numbers on a scale, or listed values in their order."""

    def __init__(self, name: str, values: Sequence[Any], kind: Kind, is_reversed: bool = False):
        is_numeric = all(isinstance(value, int | float) for value in values)
        self.texts = distinct_texts(values)
        known = {text: value for value, text in self.texts.items()}
        self.name, self.is_reversed, self.is_scale = name, is_reversed, is_numeric and kind != "listed"
        self.order = sorted(known, key=lambda text: known[text]) if is_numeric else list(known)
        self.ends = (min(values), max(values)) if self.is_scale else (0, len(known) - 1)
        self.is_log = kind == "drawn" and self.is_scale and 0 < 20 * self.ends[0] < self.ends[1]

    def fraction(self, value: Any) -> float:
        """Return the height of a value, from 0 to 1."""
        place = value if self.is_scale else self.order.index(self.texts[value])
        place = _place(*map(math.log, (place, *self.ends))) if self.is_log else _place(place, *self.ends)
        return 1 - place if self.is_reversed else place

    def y(self, value: Any) -> float:
        return TOP + (1 - self.fraction(value)) * (HEIGHT - TOP - 24)

    def drawn(self, x: float) -> str:
        """Draw the axis, its name and its values."""
        texts = "".join(
            f'<text x="{x + 6:.1f}" y="{self.y(value) + 4:.1f}">{escape(text)}</text>' for text, value in self.ticks()
        )
        return (
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - 24}"/>'
            f'<text class="name" x="{x:.1f}" y="{TOP - 20}" text-anchor="middle">{escape(self.name)}</text>{texts}'
        )

    def ticks(self) -> list[tuple[str, Any]]:
        """Return the values that are named: the ends of a scale, or listed ones."""
        if self.is_scale:
            return [(number(end), end) for end in self.ends]
        step = math.ceil(len(self.order) / MOST_TICKS)
        places = {text: value for value, text in self.texts.items()}
        return [(_cut(text), places[text]) for text in self.order[::step]]


def _line(row: Row, places: Sequence[float], axes: Sequence[Axis], metric: Axis, analysis: Analysis) -> str:
    heights = [axis.y(row.params[axis.name]) for axis in axes] + [metric.y(row.mean)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))
    colour = COLOURS[round(metric.fraction(row.mean) * (len(COLOURS) - 1))]
    values = ", ".join(f"{key}={analysis.text(key, row.params[key])}" for key in analysis.varied)
    title = escape(f"{row.name}: {analysis.metric} {row.measured}; {values}")
    best = ' class="best"' if row is analysis.winner else ""
    return f'<polyline{best} points="{points}" stroke="{colour}"><title>{title}</title></polyline>'


def _ends(row: Row) -> tuple[float, float]:
    mean, half = fmean(row.values), row.margin or 0.0
    return mean - half, mean + half


def _place(value: float, low: float, high: float) -> float:
    return 0.5 if high == low else (value - low) / (high - low)


def _cut(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"

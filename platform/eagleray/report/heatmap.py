"""Draw the result of a sweep.

The picture shows the metric over the two keys that matter most, or over pairs of operations.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

from eagleray.config.settings import as_names
from eagleray.contracts.files import whole
from eagleray.report.analysis import Analysis
from eagleray.report.leaderboard import Row
from eagleray.report.numbers import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cells = dict[tuple[str, str], list[float]]  # (row, column) -> the metric of all its points


def plot_heatmap(analysis: Analysis, path: Path, title: str = "") -> bool:
    """Draw a heat map as a PNG.

    If one key is varied, dots are drawn instead.

    Args:
        analysis: of the sweep.
        path: of the PNG.
        title: for example the sweep's question.

    Returns:
        False if there was nothing to compare, so that nothing was drawn.
    """
    if not analysis.effects.each:
        return False
    with literal():
        _draw(analysis, path, title)
    return True


@contextmanager
def literal() -> Iterator[None]:
    """Let matplotlib draw all text as it is: $ in a question or value is a dollar.

    A script that the font lacks is drawn as boxes; the page has the same words as text.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


def _draw(analysis: Analysis, path: Path, title: str) -> None:
    from matplotlib.figure import Figure  # not pyplot, which may open windows

    figure = Figure(layout="constrained")
    key, *others = dict.fromkeys(effect.of for effect in analysis.effects.each)
    if analysis.parts(key) and max(len(as_names(row.params[key]) or ()) for row in analysis.comparable) == 2:
        names = analysis.parts(key)
        _map(figure, paired(analysis.comparable, key), names, names, (key, key), analysis)
    elif others:
        down, along = (list(dict.fromkeys(analysis.levels(name).values())) for name in (key, others[0]))
        _map(figure, crossed(analysis, key, others[0]), down, along, (key, others[0]), analysis)
    else:
        _dots(figure, analysis)
    figure.suptitle(fill(title, 60), x=0.01, ha="left", fontsize=11)
    figure.text(0.99, -0.02, _floors(analysis), ha="right", va="top", fontsize=8, color="0.35")
    with whole(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight", pad_inches=0.15)


def paired(rows: Sequence[Row], key: str) -> Cells:
    """Collect single operations and their pairs.

    Single ones are on the diagonal, each pair is on both sides of it, as in figure 5 of SimCLR.
    """
    cells: Cells = {}
    for row in rows:
        names = as_names(row.params[key])
        if not names:  # a point without any operation has no place
            continue
        for place in {(names[0], names[-1]), (names[-1], names[0])}:
            cells.setdefault(place, []).append(fmean(row.values))
    return cells


def crossed(analysis: Analysis, key: str, other: str) -> Cells:
    down, along = analysis.levels(key), analysis.levels(other)
    cells: Cells = {}
    for row in analysis.comparable:
        place = down[row.params[key]], along[row.params[other]]
        cells.setdefault(place, []).append(fmean(row.values))
    return cells


def _map(
    figure: "Figure", cells: Cells, down: list[str], along: list[str], keys: tuple[str, str], analysis: Analysis
) -> None:
    axes = figure.add_subplot()
    means = [[fmean(cells[a, b]) if (a, b) in cells else float("nan") for b in along] for a in down]
    figure.set_size_inches(2.6 + 0.95 * len(along), 1.6 + 0.62 * len(down))
    image = axes.imshow(means, cmap="viridis" if analysis.mode == "max" else "viridis_r", aspect="auto")
    axes.set_facecolor("0.93")  # cells without a trial
    axes.set_xticks(range(len(along)), along, rotation=30 if max(map(len, along)) > 9 else 0)
    axes.set_yticks(range(len(down)), down)
    axes.set_xlabel(keys[1])
    axes.set_ylabel(keys[0])
    axes.spines[:].set_visible(False)
    for y, a in enumerate(down):
        for x, b in enumerate(along):
            _label(axes, x, y, cells.get((a, b), []), image)
    figure.colorbar(image, ax=axes, label=_metric(analysis), fraction=0.06)


def _label(axes: "Axes", x: int, y: int, values: list[float], image: Any) -> None:
    if not values:
        return
    red, green, blue, _ = image.cmap(image.norm(fmean(values)))
    color = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
    count = f"\n{len(values)} trials" if len(values) > 1 else ""
    axes.text(x, y, number(fmean(values)) + count, ha="center", va="center", fontsize=8, color=color)


def _dots(figure: "Figure", analysis: Analysis) -> None:
    """Draw a dot for every run of every value.

    The mean of a value is on a line; floors are dashed lines.
    """
    axes, key = figure.add_subplot(), analysis.effects.each[0].of
    labels = analysis.levels(key)
    levels: dict[str, list[float]] = {label: [] for label in labels.values()}
    for row in analysis.comparable:
        levels[labels[row.params[key]]].extend(row.values)
    figure.set_size_inches(7, 1.3 + 0.45 * len(levels))
    for y, values in enumerate(levels.values()):
        axes.plot(values, [y] * len(values), "o", color="C0", alpha=0.6)
        axes.plot([fmean(values)] * 2, [y - 0.25, y + 0.25], "-", color="C0", linewidth=2)
    for row in analysis.floors:
        axes.axvline(fmean(row.values), linestyle="--", linewidth=1, color="0.5")
    axes.set_yticks(range(len(levels)), list(levels))
    axes.invert_yaxis()
    axes.set_xlabel(_metric(analysis))
    axes.set_ylabel(key)
    axes.spines[["top", "right"]].set_visible(False)


def _metric(analysis: Analysis) -> str:
    epoch = analysis.equal.epoch
    return analysis.metric if epoch is None else f"{analysis.metric} at epoch {epoch}"


def _floors(analysis: Analysis) -> str:
    floors = [f"{row.name} {row.measured}" for row in analysis.floors]
    interval = " (±: 95 % t interval)" if any(row.margin is not None for row in analysis.floors) else ""
    return f"{analysis.metric} of {', '.join(floors)}{interval}" if floors else ""

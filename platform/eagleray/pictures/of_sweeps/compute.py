"""Metric against compute, with the Pareto front: seconds of training, and images seen."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.drawing import BLUE, GREY, ORANGE, plain, titled
from eagleray.pictures.swept import Swept
from eagleray.report.leaderboard import Mode
from eagleray.report.recorded import Recorded
from eagleray.runs.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHECK = (
    "By eye: how much of the metric the cheap points already reach, and whether the thin lines, the courses of runs, "
    "still rise where they end. Not by eye: what a point would reach with more training. Seconds are those of runs "
    "beside each other on one machine, and a front of few seeds is partly luck."
)
KINDS = ("seconds of training, without evaluation", "images seen")
NAMED = 5  # points of the front that are named
Point = tuple[float, float]  # compute, metric


def draw(swept: Swept) -> "Figure":
    analysis = swept.analysis
    runs = {trial.name: run for trial, run in zip(swept.comparison.trials, swept.comparison.runs, strict=True)}
    courses = {name: course(run, analysis.metric) for name, run in runs.items() if run.kind == "trial"}
    rows = [row for row in analysis.tried if any(courses[name] for name in row.runs)]
    if not rows:
        raise Absent(f"no run of the sweep recorded {analysis.metric} beside its speed, so its compute is unknown")
    about = swept.about(f"{len(rows)} points (means of their seeds), {len(courses)} runs (thin lines)")
    figure = titled(12, 5.4, f"{analysis.metric} against compute", about)
    for kind, axes in enumerate(figure.subplots(1, len(KINDS), sharey=True)):
        for each in courses.values():
            axes.plot(*zip(*((at[kind], at[2]) for at in each), strict=True), color=GREY, linewidth=0.7, alpha=0.6)
        ends = [[courses[name][-1] for name in row.runs if courses[name]] for row in rows]
        points = [(fmean(end[kind] for end in each), fmean(end[2] for end in each)) for each in ends]
        _points(axes, points, [row.name for row in rows], analysis.mode)
        for floor in analysis.floors:
            axes.axhline(floor.mean, color=GREY, linestyle=":", linewidth=1)
            axes.annotate(
                floor.name, (1, floor.mean), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
            )
        axes.set_xlabel(KINDS[kind])
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        plain(axes)
    figure.axes[0].set_ylabel(analysis.metric)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=9
    )
    return figure


def course(run: Recorded, metric: str) -> list[tuple[float, float, float]]:
    """Return what a run had spent whenever it measured the metric: seconds, images, and the metric.

    The seconds are the images by the speed that was recorded, so that evaluating and waiting are left out.
    """
    samples = (Record.open(run.key).data() or {}).get("images", {}).get("train", 0)
    batch = int(run.params.get("batch_size", 1))
    each = samples // batch * batch  # images of an epoch: the last, incomplete batch is left out
    rows = [(epoch, row) for epoch, row in run.epochs.items() if metric in row and row.get("images_per_second")]
    return [
        (epoch * each / row["images_per_second"], epoch * each, row[metric]) for epoch, row in rows if epoch and each
    ]


def front(points: Sequence[Point], mode: Mode) -> list[int]:
    """Return which points no other beats, from the cheapest.

    One beats another if it is as cheap and as good, and in one of both better.
    """
    sign = -1 if mode == "max" else 1
    found: list[int] = []
    for place in sorted(range(len(points)), key=lambda n: (points[n][0], sign * points[n][1])):
        best = points[found[-1]] if found else None
        if best is None or sign * points[place][1] < sign * best[1] or points[place] == best:
            found.append(place)
    return found


def _points(axes: "Axes", points: Sequence[Point], names: Sequence[str], mode: Mode) -> None:
    axes.scatter(*zip(*points, strict=True), s=34, color=BLUE, label="a point, at its end", zorder=3)
    best = front(points, mode)
    line = [points[place] for place in best]
    axes.plot(*zip(*line, strict=True), "D-", color=ORANGE, markersize=8, fillstyle="none", label="Pareto front",
              drawstyle="steps-post", zorder=4)  # fmt: skip
    for place in best[-NAMED:]:
        axes.annotate(
            names[place], points[place], (6, 7 if mode == "max" else -12), textcoords="offset points", fontsize=9
        )

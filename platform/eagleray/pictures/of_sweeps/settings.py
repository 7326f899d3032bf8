"""Settings of all points and the metric that they reached, as parallel coordinates."""

from typing import TYPE_CHECKING

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.drawing import titled
from eagleray.pictures.swept import Swept
from eagleray.report.drawing import axes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECK = (
    "By eye: do the dark lines, the best points, pass through the same values of a setting? Then it may matter, and "
    "where. Not by eye: whether a difference is more than noise, which the tests in the sweep's report say. Searches "
    "and schedulers that favour good points draw more lines where they were lucky."
)


def draw(swept: Swept) -> "Figure":
    from matplotlib import colormaps

    analysis = swept.analysis
    if len(analysis.tried) < 2 or not analysis.varied:
        raise Absent(
            "settings are compared between two points or more, and this sweep has fewer that measured its metric"
        )
    keys, metric = axes_of(analysis)
    every = [*keys, metric]
    best = "lowest at the top" if analysis.mode == "min" else "highest at the top"
    about = f"{len(analysis.tried)} points, the darker the better"
    figure = titled(max(7.0, 2.6 * len(every)), 5, f"Settings and {metric.name}", swept.about(about))
    axes = figure.add_subplot()
    for row in reversed(analysis.tried):  # the best lie on top
        heights = [axis.fraction(row.params[axis.name]) for axis in keys] + [metric.fraction(row.mean)]
        colour, is_best = colormaps["viridis_r"](0.12 + 0.88 * heights[-1]), row is analysis.winner
        axes.plot(heights, color=colour, linewidth=4 if is_best else 1.6, alpha=1 if is_best else 0.8, gid=row.name)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for x, axis in enumerate(every):
        axes.axvline(x, color="0.35", linewidth=1)
        for text, value in axis.ticks():
            axes.text(x + 0.03, axis.fraction(value), text, va="center", fontsize=9, bbox=box)
    axes.set_xticks(range(len(every)), [*(axis.name for axis in keys), f"{metric.name}\n({best})"])
    axes.set(yticks=[], xlim=(-0.05, len(keys) + 0.35), ylim=(-0.05, 1.05))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure

"""Draw on a figure: titles, colours that all people can tell apart, rows of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from eagleray.contracts.files import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#767676"  # of Okabe and Ito
# Of Paul Tol's scheme "muted"; with the markers, 36 classes have each a sign of their own.
COLOURS = ("#332288", "#cc6677", "#117733", "#88ccee", "#882255", "#ddcc77", "#44aa99", "#aa4499", "#999933")
MARKERS = "os^D"
DPI = 110
LETTERS = 12  # of a title, to an inch
NAME = 1.1  # inches for the name of a row


def titled(width: float, height: float, title: str, about: str) -> "Figure":
    """Return a figure with a title over it; sizes are in inches."""
    from matplotlib.figure import Figure  # not pyplot, which may open windows

    figure = Figure((width, height), layout="constrained")
    lines = fill(about, int(LETTERS * width))
    figure.suptitle(f"{title}\n{lines}", x=0.01, ha="left", fontsize=11)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG."""
    with whole(path) as file:
        figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.12)


def cut(name: str, letters: int) -> str:
    """Return a name that has room."""
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def plain(axes: "Axes") -> None:
    """Remove the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True)
class Tile:
    """An image of a sheet."""

    image: np.ndarray  # uint8 or float in 0..1 [H, W, 3], or [H, W] that is shown in colours
    text: str = ""  # below it
    colour: str = "black"  # of the text, and of the frame if there is one
    frame: str = ""  # its line style; empty: it has no frame


def sheet(
    title: str,
    about: str,
    rows: Sequence[Sequence[Tile]],
    heads: Sequence[str],
    side: float = 1.1,
    names: Sequence[str] = (),
) -> "Figure":
    """Return a figure with rows of images, each image fitted into a square.

    Args:
        title: of the figure.
        about: the lines below the title.
        rows: of tiles, at most as many in each as columns.
        heads: over the columns.
        side: of a square, in inches.
        names: left of the rows, if they have any.
    """
    from matplotlib.patches import Rectangle

    right, down = 1.08, 1.08 + 0.15 * max(len(tile.text.splitlines()) for row in rows for tile in row)
    left_of_all = NAME / side if names else 0.04  # in sides
    width = (right * len(heads) + left_of_all) * side + 0.4
    lines = len(fill(about, int(LETTERS * width)).splitlines())
    figure = titled(width, (down * len(rows) + 0.4) * side + 0.25 * (2 + lines), title, about)
    axes = figure.add_subplot()
    for y, x, tile in ((y, x, tile) for y, row in enumerate(rows) for x, tile in enumerate(row)):
        height, wide = (length / max(tile.image.shape[:2]) for length in tile.image.shape[:2])
        left, top = x * right + (1 - wide) / 2, y * down + (1 - height) / 2
        extent = (left, left + wide, top + height, top)
        axes.imshow(tile.image, extent=extent, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        if tile.frame:
            line = {"edgecolor": tile.colour, "linestyle": tile.frame, "linewidth": 2.2, "fill": False}
            axes.add_patch(Rectangle((left, top), wide, height, **line))
        axes.text(x * right + 0.5, y * down + 1.04, tile.text, ha="center", va="top", fontsize=8, color=tile.colour)
    for x, head in enumerate(heads):
        axes.text(x * right + 0.5, -0.08, head, ha="center", va="bottom", fontsize=9)
    for y, name in enumerate(names):
        axes.text(-0.1, y * down + 0.5, fill(name, 14), ha="right", va="center", fontsize=9)
    axes.set(xlim=(-left_of_all, right * len(heads)), ylim=(down * len(rows), -0.35), aspect="equal")
    axes.axis("off")
    return figure

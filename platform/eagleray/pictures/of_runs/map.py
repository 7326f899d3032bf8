"""Map of the features: their two main directions, and t-SNE.

PCA keeps distances and shows the two directions in which features vary most; t-SNE keeps neighbours, by cosine as kNN
does, and no distances.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from eagleray.contracts.features import NOISE, evenly
from eagleray.pictures.catalogue import Absent
from eagleray.pictures.drawing import COLOURS, GREY, MARKERS, cut, plain, titled
from eagleray.pictures.trained import Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHECK = (
    "By eye: do images that lie together in the lower map look alike to you, and in what (colour, background, shape)? "
    "With classes: do they form regions? Not by eye: sizes of groups and distances between them mean nothing in t-SNE, "
    "classes that overlap in two dimensions may be apart in more, and colours of images alone can make a tidy map."
)
MOST = 2000  # images that are placed: the time of t-SNE grows faster than their number
LEAST = 10
NAMED = 12  # classes that have a colour; the others are grey
WIDTH, MOST_COLUMNS, SHAPE = 1440, 36, 2.4  # of the map of images: pixels, cells in a row, width by height


def draw(trained: Trained) -> "Figure":
    places = evenly(torch.arange(len(trained.images)), MOST).tolist()
    features = trained.features[places].double().numpy()
    if len(features) < LEAST:
        raise Absent(f"a map needs at least {LEAST} images, and there are {len(features)}")
    if features.std(0).max() <= NOISE * np.sqrt(np.square(features).mean()):
        raise Absent(f"the features of all {len(features):,} images are equal, so they have no map: the run collapsed")
    along, shares = main_directions(features)
    near = neighbour_map(features, trained.built.run.seed)
    figure = titled(12, 10.8, "Map of the features", trained.about("knn", "linear", "rank"))
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(5, 5.6)).ravel()
    left, right = upper.subplots(1, 2)
    labels = None if trained.labels is None else trained.labels[places]
    for axes, points in ((left, along), (right, near)):
        _scatter(axes, points, labels, trained)
    for number, (share, name) in enumerate(zip(shares, ("xlabel", "ylabel"), strict=True), 1):
        left.set(**{name: f"direction {number} ({share:.0%} of the variance)"})
    left.set_title(f"PCA of {len(places):,} images", fontsize=10)
    right.set_title("t-SNE of the same images", fontsize=10)
    right.set(xticks=[], yticks=[])
    if labels is not None:
        handles, names = left.get_legend_handles_labels()
        upper.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9, markerscale=2)
    axes = lower.subplots()
    axes.imshow(_collage(near, places, trained), aspect="equal")
    axes.set_title("images at their places in t-SNE, one for each cell", fontsize=10)
    axes.axis("off")
    return figure


def main_directions(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return [N, 2] coordinates along the two main directions, and the share of the variance of each."""
    from sklearn.decomposition import PCA

    found = PCA(2, svd_solver="full")
    return found.fit_transform(features), found.explained_variance_ratio_


def neighbour_map(features: np.ndarray, seed: int) -> np.ndarray:
    """Return the places of images in t-SNE, [N, 2]; the same for the same seed."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    units = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    perplexity = min(30.0, (len(units) - 1) / 3)
    with threadpool_limits(1):  # sums of several threads differ by rounding, which t-SNE makes large
        return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(units)


def nearest_to_cells(points: np.ndarray, rows: int, columns: int) -> dict[tuple[int, int], int]:
    """Return the point nearest to the middle of each cell that has points: (row, column) -> place in [N, 2]."""
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / (high - low).clip(1e-12) * (columns, rows)
    cells = np.minimum(scaled.astype(int), (columns - 1, rows - 1))
    distances = np.square(scaled - cells - 0.5).sum(1)
    found: dict[tuple[int, int], int] = {}
    for place in distances.argsort(kind="stable"):
        column, row = cells[place].tolist()
        found.setdefault((rows - 1 - row, column), int(place))
    return found


def _collage(points: np.ndarray, places: list[int], trained: Trained) -> np.ndarray:
    """Draw images at their places, uint8 [H, WIDTH, 3]: about as many cells as images, if those are few."""
    columns = min(MOST_COLUMNS, round(math.sqrt(SHAPE * len(points))))
    rows, side = round(columns / SHAPE), WIDTH // columns
    cells = nearest_to_cells(points, rows, columns)
    canvas = Image.new("RGB", (columns * side, rows * side), "white")
    images = trained.pixels([places[place] for place in cells.values()])
    for (row, column), image in zip(cells, images, strict=True):
        canvas.paste(ImageOps.contain(Image.fromarray(image), (side - 2, side - 2)), (column * side, row * side))
    return np.asarray(canvas)


def _scatter(axes: "Axes", points: np.ndarray, labels: np.ndarray | None, trained: Trained) -> None:
    plain(axes)
    size = max(5, min(30, 20_000 / len(points)))
    if labels is None:
        axes.scatter(*points.T, s=size, color=COLOURS[0], alpha=0.6, linewidths=0)
        return
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    named = sorted(classes[(-counts).argsort(kind="stable")][:NAMED].tolist())
    others = ~np.isin(labels, named)
    if others.any():
        more = len(classes) - len(named)
        name = f"{more} more classes" if more else "unlabelled"
        axes.scatter(*points[others].T, s=size, color=GREY, alpha=0.35, linewidths=0, label=name)
    for place, label in enumerate(named):
        its, colour, marker = labels == label, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        name = cut(trained.name_of(label), 24)
        axes.scatter(*points[its].T, s=size, color=colour, marker=marker, alpha=0.75, linewidths=0, label=name)

"""Nearest neighbours of some images, by the cosine of their features."""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.drawing import BLUE, ORANGE, Tile, cut, sheet
from eagleray.pictures.trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECK = (
    "By eye: do the neighbours of an image show what you mean by alike, or only its colours, its background or its "
    "pose? The same few images in many rows are hubs, a fault of the features. Not by eye: how often neighbours agree "
    "over all images, which kNN and the share in the title count; eight rows are an impression."
)
COUNT, ROWS = 8, 8  # neighbours of an image, and images
LETTERS = 11  # of a class's name


def draw(trained: Trained) -> "Figure":
    if len(trained.images) <= COUNT:
        raise Absent(f"{COUNT} neighbours need more than {COUNT} images, and there are {len(trained.images)}")
    places, cosines = nearest(trained.features, COUNT)
    about = trained.about("knn")
    if trained.labels is not None and (found := agreement(trained.labels, places.numpy())):
        share, chance = found
        about += f"; of all neighbours {share:.0%} are of the image's class (by chance {chance:.0%})"
    rows = []
    for place in trained.samples(ROWS):
        others = places[place].tolist()
        image, *images = trained.pixels([place, *others])
        tiles = zip(images, others, cosines[place].tolist(), strict=True)
        rows.append(
            [Tile(image, cut(trained.class_of(place), LETTERS)), *(_tile(trained, place, *each) for each in tiles)]
        )
    heads = ["image", *(str(number) for number in range(1, COUNT + 1))]
    return sheet(f"The {COUNT} nearest neighbours of some images", about, rows, heads)


def nearest(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the places of each image's nearest others, and their cosines: [N, D] -> [N, count] each.

    The nearest is first; of equal ones the first of the images.
    """
    units = F.normalize(features.float(), dim=1)
    cosines = units @ units.T
    cosines.fill_diagonal_(-torch.inf)
    values, places = cosines.sort(dim=1, descending=True, stable=True)
    return places[:, :count], values[:, :count]


def agreement(labels: np.ndarray, places: np.ndarray) -> tuple[float, float] | None:
    """Return the share of neighbours that have the image's class, and what it would be by chance.

    Pairs in which a class is unknown are left out; None: there are no others.

    Args:
        labels: int64 [N], -1 unknown.
        places: of the neighbours, int64 [N, K].
    """
    known = (labels[:, None] >= 0) & (labels[places] >= 0)
    if not known.any():
        return None
    counts = np.bincount(labels[labels >= 0])
    chance = (counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1))
    return float((labels[:, None] == labels[places])[known].mean()), float(chance)


def _tile(trained: Trained, place: int, image: np.ndarray, other: int, cosine: float) -> Tile:
    labels = trained.labels
    if labels is None or labels[place] < 0 or labels[other] < 0:
        return Tile(image, f"{cosine:.2f}")
    is_same = labels[place] == labels[other]
    colour, frame, mark = (BLUE, "-", "✓") if is_same else (ORANGE, "--", "✗")
    return Tile(image, f"{mark} {cut(trained.class_of(other), LETTERS)}\n{cosine:.2f}", colour, frame)

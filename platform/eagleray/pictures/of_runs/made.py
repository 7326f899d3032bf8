"""What the method makes of images: reconstructions, completed holes, colours, solved puzzles, samples, a dictionary."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.drawing import Tile, cut, sheet
from eagleray.pictures.trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECK = (
    "By eye: do the hidden parts continue shapes and colours of the visible ones, or are they a blur or a grid; are "
    "colours, puzzles and rotations right; are samples varied, or a dictionary's entries edges and colours, or noise? "
    "Samples and the entries of a dictionary belong to no image above them. Not by eye: whether the features are good; "
    "sharp reconstructions and useful features are different things. Brightness and contrast of normalised patches, "
    "which the network does not know, are the true ones."
)
COLUMNS = 10  # images
ROWS, INSIDE = 2, 5  # of images that stand alone: rows of tiles, and images along a tile's side, at most
LETTERS = 11  # of a class's name


def draw(trained: Trained) -> "Figure":
    places = trained.samples(COLUMNS)
    inputs = trained.inputs(places)
    with torch.no_grad(), trained.built.autocast:
        made = trained.built.method.picture(inputs)
    if not made:
        raise Absent(f"{trained.built.run.method.name} makes no images that could be shown")
    below, alone = [("images", trained.visible(inputs))], []
    for title, images in made.items():
        if len(images) == len(inputs):
            below.append((title, trained.visible(images)))
            continue
        inside = min(INSIDE, math.ceil(math.sqrt(len(images) / (ROWS * COLUMNS))))
        shown = images[: ROWS * COLUMNS * inside**2]
        name = title if len(shown) == len(images) else f"{title}, {len(shown):,} of {len(images):,}"
        tiles = blocks(trained.visible(shown), inside)
        alone += [
            (name if first == 0 else "", tiles[first : first + COLUMNS]) for first in range(0, len(tiles), COLUMNS)
        ]
    heads = [cut(trained.class_of(place), LETTERS) for place in places]
    rows = [[Tile(image) for image in row] for _, row in [*below, *alone]]
    names = [name for name, _ in [*below, *alone]]
    return sheet("What the method makes of images", trained.about("loss", "linear"), rows, heads, names=names)


def blocks(images: list[np.ndarray], inside: int) -> list[np.ndarray]:
    """Arrange images in squares of `inside` x `inside`, with white lines between, float [s, s, 3] each."""
    if inside == 1:
        return images
    framed = [np.pad(image, ((0, 1), (0, 1), (0, 0)), constant_values=1.0) for image in images]
    framed += [np.ones_like(framed[0])] * (-len(framed) % inside**2)
    lines = [np.concatenate(framed[first : first + inside], 1) for first in range(0, len(framed), inside)]
    return [np.concatenate(lines[first : first + inside])[:-1, :-1] for first in range(0, len(lines), inside)]

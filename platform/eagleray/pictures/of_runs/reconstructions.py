"""Reconstructions of a masked method: images, what it sees of them, and what it makes of that."""

from typing import TYPE_CHECKING

import torch

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.drawing import Tile, sheet
from eagleray.pictures.trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECK = (
    "By eye: do the hidden parts continue shapes and colours of the visible ones, or are they a blur or a grid? Not by "
    "eye: whether the features are good; sharp reconstructions and useful features are different things, and a method "
    "that predicts normalised patches is given their true brightness and contrast here."
)
ROWS = 8  # of two images each


def draw(trained: Trained) -> "Figure":
    places = trained.samples(2 * ROWS)
    inputs = trained.inputs(places)
    with torch.no_grad(), trained.built.autocast:
        made = trained.built.method.reconstruct(inputs)
    if made is None:
        raise Absent(f"{trained.built.run.method.name} reconstructs no pixels: this is a picture of masked methods")
    hidden, whole = made
    tiles = []
    parts = zip(places, trained.visible(inputs), hidden.cpu().numpy(), trained.visible(whole), strict=True)
    for place, image, mask, reconstruction in parts:
        seen = image.copy()
        seen[mask] = 0.5
        tiles.append([Tile(image, trained.class_of(place)), Tile(seen), Tile(reconstruction)])
    half = len(tiles) // 2
    rows = [[*one, *other] for one, other in zip(tiles[:half], tiles[half : 2 * half], strict=True)]
    about = f"{trained.about('loss', 'linear')}; {hidden.float().mean().item():.0%} of each image is hidden"
    return sheet("Reconstructions", about, rows, ["image", "seen", "reconstructed"] * 2, side=1.2)

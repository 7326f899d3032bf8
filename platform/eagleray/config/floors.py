"""The kinds of floor. A floor is a baseline without a trained network, which every comparison must beat."""

from typing import Literal

FloorKind = Literal["random", "pixels", "kmeans"]
MEANINGS: dict[FloorKind, str] = {
    "random": "the encoder before any training",
    "pixels": "the images themselves, reduced to 32 pixels a side if they are larger",
    "kmeans": "k-means codes of whitened patches (Coates et al. 2011)",
}

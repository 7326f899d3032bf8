"""The kinds of floor. A floor is what a comparison must beat: a baseline for which no network is trained."""

from typing import Literal

FloorKind = Literal["random", "pixels", "kmeans"]
MEANINGS: dict[FloorKind, str] = {
    "random": "the encoder before any training",
    "pixels": "the images themselves, shrunk to 32 pixels a side where larger",
    "kmeans": "k-means codes of whitened patches (Coates et al. 2011)",
}

"""Floors: baselines without a trained network.

Every comparison must beat them.
"""

from typing import Literal

FloorKind = Literal["random", "pixels", "kmeans"]
MEANINGS: dict[FloorKind, str] = {
    "random": "the encoder before any training",
    "pixels": "the images themselves, reduced to 32 pixels a side if they are larger",
    "kmeans": "k-means codes of whitened patches (Coates et al. 2011)",
}

"""Which images are held out, and which keep their labels: drawn by seed, class by class if any is known."""

import numpy as np

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.seeds import Stream, numpy_generator


def held_out(samples: int, labels: np.ndarray | None, share: float, stream: tuple[int, ...]) -> np.ndarray:
    """Positions to hold out, sorted: `share` of every class, at least one image of it, never its last.

    Args:
        samples: N, images to choose from.
        labels: int64 [N]; unlabelled images (-1) are never held out. None: all are of one kind.
        share: from 0 (none is held out) to 1.
        stream: what the draw depends on.
    """
    if share == 0:
        return np.empty(0, np.int64)
    labels = np.zeros(samples, np.int64) if labels is None else labels
    chosen = [
        _drawn(np.flatnonzero(labels == label), share, (*stream, int(label)))
        for label in np.unique(labels[labels >= 0])
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def _drawn(positions: np.ndarray, share: float, stream: tuple[int, ...]) -> np.ndarray:
    count = min(max(1, round(share * len(positions))), len(positions) - 1)
    return numpy_generator(*stream).permutation(positions)[:count]


def drawn(samples: int, count: int, stream: tuple[int, ...]) -> np.ndarray:
    """So many of the positions, all if there are fewer, sorted."""
    return np.sort(numpy_generator(*stream).permutation(samples)[:count])


def balanced(labels: np.ndarray, per_class: int, seed: int, class_names: tuple[str, ...]) -> np.ndarray:
    """Positions of `per_class` images of every class, sorted; the draw depends on the seed alone.

    Raises:
        ConfigError: a class has fewer.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
    short = int(np.argmin(counts))
    if counts[short] < per_class:
        raise ConfigError(
            f"labels.per_class={per_class}: train has {counts[short]} images of class {class_names[short]!r}"
        )
    chosen = [
        numpy_generator(Stream.PICK, seed, label).permutation(np.flatnonzero(labels == label))[:per_class]
        for label in range(len(class_names))
    ]
    return np.sort(np.concatenate(chosen))

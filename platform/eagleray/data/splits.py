"""Draw held-out and labelled images, by seed.

If labels are known, the draw is class by class.
"""

import numpy as np

from eagleray.config.sections import DataSettings, Labels
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.seeds import Stream, numpy_generator


def split(
    samples: int, labels: np.ndarray | None, settings: DataSettings, seed: int, *, own_validation: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Split the training images of a source, by the run's seed.

    Args:
        samples: N, number of images.
        labels: int64 [N], -1: unknown; None: there are no classes.
        settings: the shares.
        seed: of the run.
        own_validation: the source has validation images, so none are held out.

    Returns:
        Positions to train on and positions held out for validation, both sorted.
    """
    share = 0 if own_validation else settings.validation
    held = held_out(samples, labels, share, (Stream.VALIDATION, seed))
    train = np.delete(np.arange(samples), held)
    if settings.limit is not None:
        train = train[drawn(len(train), settings.limit, (Stream.LIMIT, seed))]
    return train, held


def held_out(samples: int, labels: np.ndarray | None, share: float, stream: tuple[int, ...]) -> np.ndarray:
    """Draw positions to hold out, sorted.

    They are `share` of every class, at least one image, but never all of them.

    Args:
        samples: N, number of images.
        labels: int64 [N]; unlabelled images (-1) are never held out. None: all count as one class.
        share: from 0 (none is held out) to 1.
        stream: seeds the draw.
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
    """Draw `count` positions, sorted, or all if fewer."""
    return np.sort(numpy_generator(*stream).permutation(samples)[:count])


def few_of_each(labels: np.ndarray, wanted: Labels, seed: int, class_names: tuple[str, ...]) -> np.ndarray:
    """Draw positions of labelled images of every class, sorted.

    As many of each class as `wanted` asks for, at least one. They depend only on the seed; more of them contain the
    fewer.

    Raises:
        ConfigError: a class has fewer images.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
    takes = np.full(len(counts), wanted.per_class or 0)
    if wanted.fraction is not None:
        takes = np.maximum(1, np.rint(wanted.fraction * counts).astype(np.int64))
    short = int(np.argmin(counts - takes))
    if counts[short] < takes[short]:
        raise ConfigError(
            f"{wanted.asked}: train has {counts[short]} images of class {class_names[short]!r}; ask for no more"
        )
    chosen = [
        numpy_generator(Stream.PICK, seed, label).permutation(np.flatnonzero(labels == label))[:take]
        for label, take in enumerate(takes)
    ]
    return np.sort(np.concatenate(chosen))

"""Draw held-out and labelled images, by seed.

If labels are known, the draw is class by class.
"""

import numpy as np

from eagleray.config.sections import DataSettings, Labels
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.seeds import Stream, numpy_generator


def split(
    samples: int,
    labels: np.ndarray | None,
    class_names: tuple[str, ...] | None,
    settings: DataSettings,
    seed: int,
    *,
    own_validation: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Split the training images of a source, by the run's seed.

    Args:
        samples: N, number of images.
        labels: int64 [N], -1: unknown; None: there are no classes.
        class_names: of all classes; None: there are none.
        settings: the shares.
        seed: of the run.
        own_validation: the source has validation images, so none are held out.

    Returns:
        Positions to train on and positions held out for validation, both sorted.

    Raises:
        ConfigError: a setting needs labels that there are not.
    """
    held = np.empty(0, np.int64)
    if settings.validation_per_class is not None and not own_validation:
        held = validation_of_each(labels, class_names, settings, seed, part="train")
    elif not own_validation:
        held = held_out(samples, labels, settings.validation or 0, (Stream.VALIDATION, seed))
    train = np.delete(np.arange(samples), held)
    if settings.limit is not None:
        train = train[drawn(len(train), settings.limit, (Stream.LIMIT, seed))]
    if settings.imbalance > 1:
        known, names = _needed(labels, class_names, f"data.imbalance={settings.imbalance:g}")
        train = train[long_tailed(known[train], settings.imbalance, seed, len(names))]
    return train, held


def validation_of_each(
    labels: np.ndarray | None, class_names: tuple[str, ...] | None, settings: DataSettings, seed: int, *, part: str
) -> np.ndarray:
    """Draw `validation_per_class` positions of every class, sorted.

    More of them contain the fewer.

    Args:
        labels: int64 [N] of the images to draw from, as for `split`.
        class_names: of all classes; None: there are none.
        settings: says how many.
        seed: of the run.
        part: of the source whose images they are; of train, some of each class are left to train on.

    Raises:
        ConfigError: there are no labels, or too few of a class.
    """
    wanted = settings.validation_per_class or 0
    asked = f"data.validation_per_class={wanted}"
    known, names = _needed(labels, class_names, asked)
    counts = np.bincount(known[known >= 0], minlength=len(names))
    short = int(np.argmin(counts))
    if counts[short] < wanted + (part == "train"):
        left = ", of which some must be left to train on" if part == "train" else ""
        raise ConfigError(f"{asked}: {part} has {counts[short]} labelled images of class {names[short]!r}{left}")
    return _first_of_each(known, np.full(len(names), wanted), (Stream.VALIDATION, seed))


def long_tailed(labels: np.ndarray, imbalance: float, seed: int, classes: int) -> np.ndarray:
    """Draw positions of which class k has imbalance^(-k/(K-1)) times as many as the largest class has, sorted.

    A class keeps at least one image, and no more than it has. Images without a label (-1) all stay. More imbalance
    keeps a part of what less keeps.

    Source: Cui et al. 2019, arXiv 1901.05555, whose counts are rounded down.

    Args:
        labels: int64 [N].
        imbalance: images of the first class for each of the last.
        seed: of the run.
        classes: K.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    takes = np.minimum(counts, _tapered(np.full(classes, counts.max()), imbalance))
    kept = _first_of_each(labels, takes, (Stream.IMBALANCE, seed))
    return np.sort(np.concatenate([np.flatnonzero(labels < 0), kept]))


def _tapered(counts: np.ndarray, imbalance: float) -> np.ndarray:
    """Return counts [K] times imbalance^(-k/(K-1)), rounded down, at least one."""
    place = np.arange(len(counts)) / max(1, len(counts) - 1)
    return np.maximum(1, np.floor(counts * float(imbalance) ** -place + 1e-9).astype(np.int64))


def _first_of_each(labels: np.ndarray, takes: np.ndarray, stream: tuple[int, ...]) -> np.ndarray:
    """Draw `takes[k]` positions of each class k, sorted; more of them contain the fewer."""
    chosen = [
        numpy_generator(*stream, label).permutation(np.flatnonzero(labels == label))[:take]
        for label, take in enumerate(takes)
    ]
    return np.sort(np.concatenate(chosen))


def _needed(
    labels: np.ndarray | None, class_names: tuple[str, ...] | None, asked: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels is None or class_names is None:
        raise ConfigError(f"{asked} needs labels, and these images have none; remove it")
    return labels, class_names


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
    fewer, and so does less imbalance.

    Raises:
        ConfigError: a class has fewer images.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
    takes = np.full(len(counts), wanted.per_class or 0)
    if wanted.fraction is not None:
        takes = np.maximum(1, np.rint(wanted.fraction * counts).astype(np.int64))
    takes = _tapered(takes, wanted.imbalance)
    short = int(np.argmin(counts - takes))
    if counts[short] < takes[short]:
        raise ConfigError(
            f"{wanted.asked}: train has {counts[short]} images of class {class_names[short]!r}{_unlabelled(labels)}; "
            f"ask for no more{'' if wanted.fraction else ', or for all labels: labels.fraction=1'}"
        )
    return _first_of_each(labels, takes, (Stream.PICK, seed))


def _unlabelled(labels: np.ndarray) -> str:
    unknown = int((labels < 0).sum())
    return f" with a label ({unknown:,} images have none)" if unknown else ""

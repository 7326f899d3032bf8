"""Intervals of numbers that were measured on images: what other images of the same kind would have given."""

from collections.abc import Iterable
from math import sqrt
from statistics import NormalDist

CONFIDENCE = 0.95  # of every interval
NORMAL = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # standard errors on each side of the mean of many values
Interval = tuple[float, float]


def wilson(share: float, images: int) -> Interval:
    """Return the interval of a share of independent images, by Wilson's score.

    It stays within 0 and 1, and has a width where none or all images count.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    extra = NORMAL**2 / images
    middle = (share + extra / 2) / (1 + extra)
    half = NORMAL * sqrt(share * (1 - share) / images + extra / images / 4) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def about(mean: float, error: float) -> Interval:
    """Return the interval of the mean of many values, from its standard error."""
    return mean - NORMAL * error, mean + NORMAL * error


def of_mean(parts: Iterable[tuple[float, Interval]]) -> Interval:
    """Return the interval of the mean of independent numbers, each with its own interval.

    The distances of the ends are added as variances are.

    Source: Zou, Donner 2008, https://doi.org/10.1002/sim.3095
    """
    known = list(parts)
    mean = sum(value for value, _ in known) / len(known)
    below = sqrt(sum((value - low) ** 2 for value, (low, _) in known)) / len(known)
    above = sqrt(sum((high - value) ** 2 for value, (_, high) in known)) / len(known)
    return mean - below, mean + above

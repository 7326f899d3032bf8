"""Means over seeds: their intervals, and the difference of two."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from eagleray.contracts.interval import CONFIDENCE
from eagleray.report.variance import t_quantile


def margin(values: Sequence[float]) -> float | None:
    """Return half the width of the mean's t interval.

    It is None for less than two values.
    """
    if len(values) < 2:
        return None
    return t_quantile(len(values) - 1) * stdev(values) / len(values) ** 0.5


@dataclass(frozen=True)
class Difference:
    """The difference of two means over the same seeds."""

    mean: float
    margin: float  # half the width of its t interval
    p_value: float  # of the t test that it is 0
    seeds: int


def difference(gains: Sequence[Sequence[float]], comparisons: int = 1) -> Difference | None:
    """Compare the first point with a reference, paired by seed.

    The gains of all points estimate the noise: a common part, by which all points of one seed gain more or less, and
    the rest. The variance of a point's mean gain is composed of both, with Satterthwaite's degrees of freedom. With
    one point it is the paired t test.

    Args:
        gains: [points, seeds], each point's value less the reference's, seed by seed.
        comparisons: how many differences are looked at: Bonferroni's correction of p-value and interval, which is
            then simultaneous.

    Returns:
        None for less than two seeds: the noise is unknown.

    Source: Satterthwaite 1946, https://doi.org/10.2307/3002019
    """
    seeds = len(gains[0])
    if seeds < 2:
        return None
    mean = fmean(gains[0])
    variance, free = _mean_variance(gains)
    if variance <= 1e-18 * mean**2:  # only rounding
        return Difference(mean, 0.0, 0.0 if mean else 1.0, seeds)
    from scipy.special import stdtr, stdtrit

    p_value = 2 * float(stdtr(free, -abs(mean) / variance**0.5))
    factor = float(stdtrit(free, 1 - (1 - CONFIDENCE) / 2 / comparisons))
    return Difference(mean, factor * variance**0.5, min(1.0, comparisons * p_value), seeds)


def _mean_variance(gains: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the variance of a point's mean, and its degrees of freedom."""
    points, seeds = len(gains), len(gains[0])
    means, columns = [fmean(row) for row in gains], [fmean(column) for column in zip(*gains, strict=True)]
    whole = fmean(means)
    between = sum((column - whole) ** 2 for column in columns) / (seeds - 1)  # the common part, and rest / points
    if points == 1:
        return between / seeds, seeds - 1
    rest = sum(
        (value - mean - column + whole) ** 2
        for row, mean in zip(gains, means, strict=True)
        for value, column in zip(row, columns, strict=True)
    ) / ((points - 1) * (seeds - 1))
    other = (points - 1) / points * rest
    if between + other == 0:
        return 0.0, seeds - 1
    free = (between + other) ** 2 / (between**2 / (seeds - 1) + other**2 / ((points - 1) * (seeds - 1)))
    return (between + other) / seeds, free

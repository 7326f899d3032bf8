"""The statistical tests of a report.

Which settings made a metric vary, and do two points differ?
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev


def variance(columns: Sequence[Sequence[str]], values: Sequence[float]) -> list[tuple[float, float | None]]:
    """Test each column's effect by analysis of variance.

    The sums of squares are of type II. A key that happened to vary together with one that matters thus gets no credit
    for it. If there are too few values for all columns together (less than two degrees of freedom are left), each
    column is tested alone.

    Args:
        columns: labels of the levels, one for each value.
        values: [N], of the metric.

    Returns:
        For each column its share of the variance (eta squared) and the p-value of its F test; None if no degree of
        freedom is left to estimate the noise.
    """
    import numpy as np
    from scipy.special import fdtrc

    target = np.asarray(values)

    def fit(chosen: Sequence[Sequence[str]]) -> tuple[float, int]:
        """Fit an additive model.

        Return the sum of squared residuals, and the number of free parameters.
        """
        levels = [[label == level for label in column] for column in chosen for level in dict.fromkeys(column)]
        design = np.array([[True] * len(values), *levels], float).T
        weights, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
        return float(np.square(target - design @ weights).sum()), int(rank)

    total = fit([])[0]
    together = len(values) - fit(columns)[1] >= 2
    results: list[tuple[float, float | None]] = []
    for place, column in enumerate(columns):
        others = [*columns[:place], *columns[place + 1 :]] if together else []
        (without, fewer), (rest, parameters) = fit(others), fit([*others, column])
        groups, free = parameters - fewer, len(values) - parameters
        gain = max(0.0, without - rest)
        share = gain / total if gain > 1e-9 * total else 0.0  # less is rounding
        if share == 0 or groups == 0:
            results.append((0.0, 1.0))
        elif free < 1:
            results.append((share, None))
        elif rest <= 1e-12 * total:
            results.append((share, 0.0))
        else:
            results.append((share, float(fdtrc(groups, free, gain / groups / (rest / free)))))
    return results


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of a paired t test.

    It is None for less than two pairs.

    Args:
        differences: [N], of the pairs; the null hypothesis is that their mean is 0.
    """
    from scipy.special import stdtr

    if len(differences) < 2:
        return None
    mean, deviation = fmean(differences), stdev(differences)
    if deviation <= 1e-9 * abs(mean):  # only rounding
        return 0.0 if mean else 1.0
    return float(2 * stdtr(len(differences) - 1, -abs(mean) * len(differences) ** 0.5 / deviation))


def spans(values: Sequence[float]) -> list[str]:
    """Label each of the sorted values with its range.

    Ranges are thirds of the values, or halves if they are few.
    """
    bins = 3 if len(values) >= 9 else 2
    cuts = sorted({values[round(len(values) * part / bins)] for part in range(1, bins)} - {values[0]})
    spans = [f"{low:.3g} to {high:.3g}" for low, high in pairwise([values[0], *cuts, values[-1]])]
    return [spans[sum(value >= cut for cut in cuts)] for value in values]

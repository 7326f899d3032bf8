"""Analysis of variance: which keys made a metric vary.

One additive model of all runs: what runs of one seed share (seeds are blocks), and the effect of each key.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

from eagleray.contracts.interval import CONFIDENCE
from eagleray.report.least_squares import ROUNDING, Fit, Squares, indicators, left_within

if TYPE_CHECKING:
    import numpy as np

SIGNIFICANT = 0.05  # a larger p-value is not significant
ACT_TOGETHER = 0.001  # the same for the lack of fit: strict, as it is tested in addition to the keys
ENDS = ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2)  # probabilities of less than what was found, at an interval's ends
LARGE = 1e6  # an F statistic


class Variance:
    """Analysis of the variance of runs.

    Noise is what the additive model of seeds and keys leaves over, unless that would be wrong:

    - The keys act together: the model's lack of fit is significant, beside the differences of seeds within points.
      Then a key is tested between points that differ in this key alone, and only differences within points are noise.
    - The points are a sample. What the model does not describe of a point is then noise that its runs share; noise
      is estimated between points, and more seeds do not lower it.

    Args:
        columns: of each key, [N, d]: `indicators` of its levels, or a `polynomial`.
        values: [N], the metric of the runs.
        seeds: [N]; by default all runs have one seed.
        points: [N]; runs of a point differ only in their seed. By default each run is a point.
        sampled: whether the points are a sample of a larger space.
    """

    def __init__(
        self,
        columns: "Sequence[np.ndarray]",
        values: Sequence[float],
        seeds: Sequence[object] = (),
        points: Sequence[object] = (),
        *,
        sampled: bool = False,
    ):
        import numpy as np

        self.columns, self.sampled, self.target = list(columns), sampled, np.asarray(values, float)
        self.points = list(points) or list(range(len(values)))
        self.seeds = list(seeds) or [None] * len(values)
        self.blocks = [indicators(self.seeds)] if _shared(self.seeds, self.points) else []
        self.saturated = left_within(self.points, self.blocks, self.target)

    @cached_property
    def additive(self) -> Fit:
        return self._fit(self.columns)

    @cached_property
    def is_joint(self) -> bool:
        """Whether there are values enough for one model of all columns.

        If less than two degrees of freedom would be left, each column is tested alone.
        """
        return len(self.columns) == 1 or self._noise(self.additive).free >= 2

    @cached_property
    def lack_of_fit(self) -> float | None:
        """The p-value of the additive model's lack of fit.

        The null hypothesis is that no key's effect depends on another key. None: no point has several seeds.
        """
        lack, pure = self.additive.without(self.saturated), self.saturated.residual
        return _p_value(lack, pure) if lack.free and pure.free else None

    def p_value(self, place: int) -> float | None:
        """Return the p-value of a column's F test (type II).

        It is None if no degree of freedom is left to estimate the noise.
        """
        return _p_value(*self._tests[place])

    def mean(self, place: int, rows: Sequence[bool]) -> tuple[float, float | None]:
        """Return the fitted mean of a column's level, and its margin.

        It is the mean if all runs had the level: a missing run or another key gives no level an advantage. The margin
        is half the width of its t interval; None without an estimate of the noise.

        Args:
            place: of the column.
            rows: [N], which runs have the level.
        """
        fit, at = self._model(place)
        value, factor = fit.mean(at, rows)
        noise = self._tests[place][1]
        if noise.free < 1:
            return value, None
        return value, t_quantile(noise.free) * (noise.mean * max(0.0, factor)) ** 0.5

    def shares(self) -> list[float]:
        """Return the columns' shares of the variance between points.

        The variance is that of the points' means, noise included, as if the keys varied independently. For points
        drawn evenly from ranges these are the Sobol indices of first order.
        """
        parts, rest = [max(0.0, part - by_noise) for part, by_noise in self._parts], self._rest
        whole = sum(parts) + rest
        if whole <= ROUNDING * float(self.target @ self.target) / len(self.target):
            return [0.0] * len(parts)
        return [part / whole if part > 1e-9 * whole else 0.0 for part in parts]

    def intervals(self) -> list[tuple[float, float]]:
        """Return the intervals of these shares.

        From the noncentral F distribution; if the points are a sample, by the jackknife over points. There must be
        an estimate of the noise.
        """
        return self._jackknife() if self.sampled else [self._noncentral(place) for place in range(len(self.columns))]

    def _noncentral(self, place: int) -> tuple[float, float]:
        gain, noise = self._tests[place]
        others = sum(max(0.0, part - less) for at, (part, less) in enumerate(self._parts) if at != place) + self._rest
        one = self._parts[place][0] * (noise.mean / gain.total if gain.total and noise.total else 1.0)
        low, high = (many * one for many in _noncentrality(gain, noise))
        return low / (low + others) if low else 0.0, high / (high + others) if high else 0.0

    def _jackknife(self) -> list[tuple[float, float]]:
        left_out = [self._leave_out(name).shares() for name in dict.fromkeys(self.points)]
        count, intervals = len(left_out), []
        for share, others in zip(self.shares(), zip(*left_out, strict=True), strict=True):
            variance = (count - 1) / count * sum((each - sum(others) / count) ** 2 for each in others)
            half = t_quantile(count - 1) * variance**0.5
            intervals.append((max(0.0, share - half), min(1.0, share + half)))
        return intervals

    def _leave_out(self, name: object) -> "Variance":
        keep = [point != name for point in self.points]
        seeds, points = (
            [each for each, kept in zip(of, keep, strict=True) if kept] for of in (self.seeds, self.points)
        )
        columns = [column[keep] for column in self.columns]
        return Variance(columns, self.target[keep].tolist(), seeds, points, sampled=self.sampled)

    def _fit(self, columns: "Sequence[np.ndarray]") -> Fit:
        return Fit.of([*self.blocks, *columns], self.target)

    def _model(self, place: int) -> tuple[Fit, int]:
        """Return the model that describes a column, and its place there."""
        fit = self.additive if self.is_joint else self._fit([self.columns[place]])
        return fit, len(self.blocks) + (place if self.is_joint else 0)

    @property
    def _is_additive(self) -> bool:
        return self.sampled or self.lack_of_fit is None or self.lack_of_fit >= ACT_TOGETHER

    def _noise(self, fit: Fit) -> Squares:
        return fit.without(self.saturated) if self.sampled else fit.residual

    def _others(self, place: int) -> "list[np.ndarray]":
        return [*self.columns[:place], *self.columns[place + 1 :]] if self.is_joint else []

    @cached_property
    def _tests(self) -> list[tuple[Squares, Squares]]:
        """Return what each column explains beside the others, and the noise."""
        return list(map(self._test, range(len(self.columns))))

    def _test(self, place: int) -> tuple[Squares, Squares]:
        others, (after, _) = self._others(place), self._model(place)
        gain = self._fit(others).without(after)
        if self._is_additive:
            return gain, self._noise(after)
        alike = [indicators(list(zip(*(map(tuple, each.tolist()) for each in others), strict=True)))] if others else []
        matched = self._fit(alike).without(self._fit([*alike, self.columns[place]]))
        if matched.free == gain.free:
            return matched, self.saturated.residual
        return gain, after.without(self.saturated)  # too few points differ in this key alone

    @cached_property
    def _parts(self) -> list[tuple[float, float]]:
        """Return the variance of each column's part of the fit.

        Also what noise adds to it.
        """
        first, noise = len(self.blocks), self._noise(self.additive).mean / len(self.target)
        return [
            (
                float(self.additive.part(first + at).var()),
                noise * self._fit(self._others(at)).without(self.additive).free,
            )
            for at in range(len(self.columns))
        ]

    @cached_property
    def _rest(self) -> float:
        """Return the variance of the points' means that no key explains."""
        noise = self._noise(self.additive) if self._is_additive else self.additive.without(self.saturated)
        return noise.mean * len(set(self.points)) / len(self.target)


def t_quantile(free: float) -> float:
    """Return the factor of a two-sided t interval."""
    from scipy.special import stdtrit

    return float(stdtrit(free, (1 + CONFIDENCE) / 2))


def _shared(seeds: Sequence[object], points: Sequence[object]) -> bool:
    """Return whether some seed is that of several points.

    Only then can a seed's effect be told from a point's.
    """
    pairs = set(zip(seeds, points, strict=True))
    return len(set(seeds)) > 1 and len(pairs) > len({seed for seed, _ in pairs})


def _p_value(gain: Squares, noise: Squares) -> float | None:
    from scipy.special import fdtrc

    if gain.free == 0 or gain.total <= 1e-12 * (gain.total + noise.total):
        return 1.0
    if noise.free < 1:
        return None
    return float(fdtrc(gain.free, noise.free, gain.mean / noise.mean)) if noise.total else 0.0


def _noncentrality(gain: Squares, noise: Squares) -> tuple[float, float]:
    """Return the ends of the interval of F's noncentrality.

    Where F is so large that the effect itself has hardly any noise, F is the noncentrality over a chi-squared number:
    its own distribution would take minutes there, and lose all digits.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import chdtri, ncfdtr

    if not noise.total:
        return (1.0, 1.0) if gain.total else (0.0, 0.0)  # without noise there is no uncertainty
    statistic = gain.mean / noise.mean
    if statistic > LARGE:
        low, high = (gain.free * statistic * float(chdtri(noise.free, end)) / noise.free for end in ENDS)
        return low, high

    def end(quantile: float) -> float:
        def beyond(many: float) -> float:
            # scipy gives NaN for some of the probabilities below 1e-100.
            return float(np.nan_to_num(ncfdtr(gain.free, noise.free, many, statistic))) - quantile

        return 0.0 if beyond(0) <= 0 else cast(float, brentq(beyond, 0, 100 * gain.free * (statistic + 10)))

    return end(ENDS[0]), end(ENDS[1])

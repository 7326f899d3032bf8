"""Statistics of choosing runs by a score: rank correlation, regret, pruning and alarms.

All arrays are [methods, settings, seeds], higher is better, and no entry is NaN: a run that has no score is the worst.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, rankdata

Scores = NDArray[np.float64]
DRAWS = 10_000
POOL = 10  # settings that somebody compares
WORST = -1e12  # the score of a run that has none


def kendall(score: Scores, truth: Scores, among: NDArray[np.bool_] | None = None) -> float:
    """Return Kendall's tau-b within a method and seed, its mean over them.

    Args:
        score: what is chosen by.
        truth: what the choice should have been.
        among: [methods, settings] that count; by default all.
    """
    return float(_mean_tau(score, truth)(*_places(score, among)))


def interval(score: Scores, truth: Scores, among: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Return a 95 % interval of that tau: a bootstrap over the settings of each method (BCa)."""
    return _interval(_mean_tau(score, truth), _places(score, among))


def difference(score: Scores, other: Scores, truth: Scores) -> tuple[float, float]:
    """Return a 95 % interval of the difference of two scores' taus, on the same resampled settings."""
    first, second = _mean_tau(score, truth), _mean_tau(other, truth)

    def between(*places: NDArray[np.intp], axis: int = -1) -> Scores:
        return first(*places) - second(*places)

    return _interval(between, _places(score, None))


def chance(score: Scores, truth: Scores, seed: int = 0) -> float:
    """Return how often settings that are shuffled within their method have as high a tau (one-sided p)."""
    draw = np.random.default_rng(seed)
    count = score.shape[1]
    found = np.zeros(DRAWS)
    for x, y in zip(score, truth, strict=True):
        orders = draw.permuted(np.tile(np.arange(count), (DRAWS, 1)), axis=1)
        for one, other in zip(_signs(x), _signs(y), strict=True):
            moved = other[orders[:, :, None], orders[:, None, :]]
            found += (one * moved).sum((1, 2)) / np.sqrt((one**2).sum() * (other**2).sum())
    return float((1 + (found >= kendall(score, truth) * score.shape[0] * score.shape[2] - 1e-9).sum()) / (1 + DRAWS))


def holm(chances: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979)."""
    order = np.argsort(chances)
    factors = len(chances) - np.arange(len(chances))
    adjusted = np.empty(len(chances))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(chances)[order] * factors))
    return adjusted.tolist()


def regrets(score: Scores, truth: Scores, seed: int = 0) -> Scores:
    """Return how far below the best the chosen runs lie: [DRAWS], each the mean over methods and seeds.

    Each draw is a pool of ten settings of each method, the same for every score.
    """
    pools = _pools(score.shape[1], seed)
    chosen = np.take_along_axis(_of(truth, pools), _of(score, pools).argmax(-1)[..., None], -1)[..., 0]
    return (_of(truth, pools).max(-1) - chosen).mean((0, 1))


def random_regret(truth: Scores, seed: int = 0) -> float:
    """Return the same of a run that is picked at random."""
    pooled = _of(truth, _pools(truth.shape[1], seed))
    return float((pooled.max(-1) - pooled.mean(-1)).mean())


def halved(scores: Sequence[Scores], last: Scores, truth: Scores) -> float:
    """Return the mean regret of successive halving: at each rung the better half by its score goes on.

    Args:
        scores: at each rung at which runs are ended.
        last: what is chosen by among those that reach the end.
        truth: what the choice should have been.
    """
    lost = []
    for place in np.ndindex(truth.shape[0], truth.shape[2]):
        own = [each[place[0], :, place[1]] for each in (*scores, last, truth)]
        alive = np.arange(truth.shape[1])
        for rung in own[:-2]:
            alive = alive[np.argsort(-rung[alive], kind="stable")[: -(-len(alive) // 2)]]
        lost.append(own[-1].max() - own[-1][alive[own[-2][alive].argmax()]])
    return float(np.mean(lost))


def spent(settings: int, rungs: Sequence[int]) -> float:
    """Return the share of all epochs that successive halving trains, ended at `rungs`, whose last is the end."""
    total, alive, before = 0, settings, 0
    for rung in rungs:
        total += alive * (rung - before)
        alive, before = -(-alive // 2), rung
    return total / (settings * rungs[-1])


def area(score: Scores, is_bad: NDArray[np.bool_]) -> float:
    """Return the chance that a bad run has a lower score than a good one (area under the ROC)."""
    flat, bad = -score.ravel(), is_bad.ravel()
    count = bad.sum()
    if count in (0, len(bad)):
        return float("nan")
    return float((rankdata(flat)[bad].sum() - count * (count + 1) / 2) / (count * (len(bad) - count)))


def standardised(score: Scores) -> Scores:
    """Return scores with mean 0 and spread 1 within each method and seed; a run without one lies three below."""
    shown = np.where(score > WORST / 2, score, np.nan)
    spread = np.nanstd(shown, 1, keepdims=True)
    z = (shown - np.nanmean(shown, 1, keepdims=True)) / np.where(spread > 0, spread, 1)
    return np.clip(np.nan_to_num(z, nan=-3), -3, 3)


def fitted_elsewhere(scores: Sequence[Scores], truth: Scores, penalty: float = 10) -> Scores:
    """Return a score for each method that a ridge regression on the OTHER methods gives."""
    x, y = np.stack([standardised(each) for each in scores], -1), standardised(truth)
    found = np.empty(truth.shape)
    for place in range(len(truth)):
        others = np.arange(len(truth)) != place
        features, target = x[others].reshape(-1, x.shape[-1]), y[others].ravel()
        weights = np.linalg.solve(features.T @ features + penalty * np.eye(x.shape[-1]), features.T @ target)
        found[place] = x[place] @ weights
    return found


def _signs(own: Scores) -> NDArray[np.int8]:
    """Return who is above whom: [settings, seeds] -> [seeds, settings, settings]."""
    return np.sign(own.T[:, :, None] - own.T[:, None, :]).astype(np.int8)


def _places(score: Scores, among: NDArray[np.bool_] | None) -> list[NDArray[np.intp]]:
    """Return the settings of each method that count."""
    is_in = np.ones(score.shape[:2], dtype=bool) if among is None else among
    return [np.flatnonzero(own) for own in is_in]


def _mean_tau(score: Scores, truth: Scores) -> Callable[..., Scores]:
    """Return a function of the settings of each method, [..., n] each, that gives tau-b, averaged."""
    signs = [(_signs(x), _signs(y)) for x, y in zip(score, truth, strict=True)]

    def mean(*places: NDArray[np.intp], axis: int = -1) -> Scores:
        taus = []
        for (ours, theirs), chosen in zip(signs, places, strict=True):
            rows, columns = chosen[..., :, None].astype(int), chosen[..., None, :].astype(int)
            for one, other in zip(ours, theirs, strict=True):
                a, b = one[rows, columns], other[rows, columns]
                size = np.sqrt(np.abs(a).sum((-1, -2), dtype=float) * np.abs(b).sum((-1, -2), dtype=float))
                taus.append((a * b).sum((-1, -2), dtype=float) / np.where(size > 0, size, 1))
        return np.mean(taus, 0)

    return mean


def _interval(statistic: Callable[..., Scores], places: list[NDArray[np.intp]]) -> tuple[float, float]:
    found = bootstrap(places, statistic, n_resamples=DRAWS, batch=1000, method="BCa", vectorized=True, rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _pools(settings: int, seed: int) -> NDArray[np.intp]:
    draw = np.random.default_rng(seed)
    return draw.permuted(np.tile(np.arange(settings), (DRAWS, 1)), axis=1)[:, : min(POOL, settings)]


def _of(values: Scores, pools: NDArray[np.intp]) -> Scores:
    """[methods, settings, seeds] -> [methods, seeds, DRAWS, POOL]."""
    return values.transpose(0, 2, 1)[:, :, pools]

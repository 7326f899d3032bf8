"""The statistics of a comparison, against statsmodels and scipy, and against what is known."""

import itertools
import time

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import f, f_oneway, ncf, t, ttest_rel

from eagleray.report.least_squares import Fit, Squares, indicators, left_within, polynomial
from eagleray.report.means import difference, margin
from eagleray.report.variance import Variance, _noncentrality


def runs(a: int, b: int, seeds: int, *, missing: tuple[int, ...] = (), seed: int = 0):
    """Return the labels of A, B, seeds, points and the values of a grid with everything in it."""
    rng = np.random.default_rng(seed)
    rows = [row for n, row in enumerate(itertools.product(range(a), range(b), range(seeds))) if n not in missing]
    first, second, third = (list(each) for each in zip(*rows, strict=True))
    shared = rng.normal(0, 3, seeds)
    values = [0.8 * x - 0.5 * y + shared[s] + rng.normal() for x, y, s in rows]
    return first, second, third, [f"{x} {y}" for x, y in zip(first, second, strict=True)], values


def least_squares(values: list[float], *columns: list[int]):
    dummies = [np.array([[one == each for each in sorted(set(column))[1:]] for one in column]) for column in columns]
    return sm.OLS(values, np.column_stack([np.ones(len(values)), *dummies]).astype(float)).fit()


# --- analysis of variance --------------------------------------------------------------------------------------


def test_one_column_is_a_one_way_analysis_of_variance():
    draw = np.random.default_rng(0)
    groups = {"a": draw.normal(0, 1, 5), "b": draw.normal(0.5, 1, 4), "c": draw.normal(1, 1, 7)}
    labels = [name for name, values in groups.items() for _ in values]
    values = np.concatenate(list(groups.values())).tolist()
    variance = Variance([indicators(labels)], values)
    assert variance.p_value(0) == pytest.approx(f_oneway(*groups.values()).pvalue)
    for name, group in groups.items():
        mean, half = variance.mean(0, [label == name for label in labels])
        noise = sum(((each - each.mean()) ** 2).sum() for each in groups.values()) / 13
        assert (mean, half) == pytest.approx((group.mean(), t.ppf(0.975, 13) * (noise / len(group)) ** 0.5))


@pytest.mark.parametrize("missing", [(), (1, 5, 6, 14)], ids=["complete", "runs are missing"])
def test_seeds_are_blocks_of_an_analysis_of_variance(missing: tuple[int, ...]):
    a, b, seeds, points, values = runs(3, 2, 4, missing=missing, seed=2)
    variance = Variance([indicators(a), indicators(b)], values, seeds, points)
    whole = least_squares(values, seeds, a, b)
    assert variance.p_value(0) == pytest.approx(whole.compare_f_test(least_squares(values, seeds, b))[1])
    assert variance.p_value(1) == pytest.approx(whole.compare_f_test(least_squares(values, seeds, a))[1])
    saturated = least_squares(values, seeds, [points.index(each) for each in points])
    assert variance.lack_of_fit == pytest.approx(saturated.compare_f_test(whole)[1])


def test_a_missing_run_gives_no_level_an_advantage():
    """Without noise the fitted means are right, though the hardest seed is missing at one level."""
    hard = (0.0, -5.0)
    rows = [(x, y, s) for x in (0, 1) for y in (0, 1) for s in (0, 1) if (x, y, s) != (1, 1, 1)]
    x, y, seeds = (list(each) for each in zip(*rows, strict=True))
    values = [0.5 * a + hard[s] for a, _, s in rows]
    points = list(zip(x, y, strict=True))
    variance = Variance([indicators(x), indicators(y)], values, seeds, points)
    means = [variance.mean(0, [each == level for each in x])[0] for level in (0, 1)]
    assert means[1] - means[0] == pytest.approx(0.5)
    raw = [np.mean([value for value, each in zip(values, x, strict=True) if each == level]) for level in (0, 1)]
    assert raw[1] - raw[0] > 1


def test_keys_that_act_together_are_tested_between_points_that_differ_in_one():
    rng = np.random.default_rng(0)
    rows = list(itertools.product((0, 1), (0, 1), (0, 1), range(3)))
    rows = [row for n, row in enumerate(rows) if n not in (0, 7, 13)]
    a, b, c, seeds = (list(each) for each in zip(*rows, strict=True))
    values = [5.0 * (y == z) + rng.normal() for _, y, z, _ in rows]
    points = [f"{x}{y}{z}" for x, y, z, _ in rows]
    variance = Variance([indicators(a), indicators(b), indicators(c)], values, seeds, points)
    assert variance.lack_of_fit is not None
    assert variance.lack_of_fit < 1e-6
    cells = [2 * y + z for y, z in zip(b, c, strict=True)]
    saturated = least_squares(values, seeds, [sorted(set(points)).index(each) for each in points])
    gain = least_squares(values, seeds, cells).ssr - least_squares(values, seeds, cells, a).ssr
    statistic = gain / (saturated.ssr / saturated.df_resid)
    assert variance.p_value(0) == pytest.approx(f.sf(statistic, 1, saturated.df_resid))


def test_drawn_points_are_compared_with_the_noise_between_points():
    """More seeds of the same points do not make the points more."""
    rng = np.random.default_rng(0)
    drawn, of_point = rng.random(12), rng.normal(0, 5, 12)
    few, many = (
        Variance(
            [polynomial(np.repeat(drawn, seeds).tolist(), 1)],
            (np.repeat(of_point, seeds) + rng.normal(0, 0.01, 12 * seeds)).tolist(),
            list(range(seeds)) * 12,
            np.repeat(np.arange(12), seeds).tolist(),
            sampled=True,
        ).p_value(0)
        for seeds in (1, 20)
    )
    assert few == pytest.approx(many, rel=0.05)
    ranks = drawn.argsort().argsort()
    assert few == pytest.approx(sm.OLS(of_point, sm.add_constant(ranks.astype(float))).fit().f_pvalue, rel=0.05)


def test_a_key_that_varies_with_one_that_matters_gets_no_credit():
    draw = np.random.default_rng(0)
    real = [0, 1] * 12
    along = [label if draw.random() < 0.85 else 1 - label for label in real]
    values = [label + draw.normal(0, 0.1) for label in real]
    alone = Variance([indicators(along)], values)
    both = Variance([indicators(real), indicators(along)], values)
    assert alone.shares()[0] > 0.2
    assert both.shares()[1] < 0.01
    p_values = [alone.p_value(0), both.p_value(0), both.p_value(1)]
    assert [each is not None and each < 0.05 for each in p_values] == [True, True, False]


def test_seeds_that_no_two_points_share_are_no_blocks():
    a, seeds, values = [0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5], [1.0, 1.2, 1.1, 1.6, 1.3, 1.8]
    assert Variance([indicators(a)], values, seeds, a).p_value(0) == pytest.approx(
        f_oneway(values[:3], values[3:]).pvalue
    )


def test_without_repeats_noise_is_unknown():
    variance = Variance([indicators(["a", "b", "c"])], [1.0, 2.0, 3.0])
    assert variance.p_value(0) is None
    assert variance.mean(0, [True, False, False]) == (pytest.approx(1.0), None)


def test_equal_values_are_explained_by_nothing():
    variance = Variance([indicators(["a", "b", "a", "b"]), indicators(["c", "c", "d", "d"])], [0.5] * 4)
    assert (variance.shares(), [variance.p_value(place) for place in (0, 1)]) == ([0.0, 0.0], [1.0, 1.0])


# --- shares ----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_share_is_that_of_the_noncentral_f():
    a, b, seeds, points, values = runs(2, 2, 5)
    variance = Variance([indicators(a), indicators(b)], values, seeds, points)
    whole = least_squares(values, seeds, a, b)
    statistic = whole.compare_f_test(least_squares(values, seeds, b))[0]
    low, high = variance.intervals()[0]
    effect = np.mean([value for value, each in zip(values, b, strict=True) if each]) - np.mean(values)
    noise = whole.ssr / whole.df_resid
    others = max(0.0, effect**2 - noise / len(values)) + noise / 5  # B's variance, and the noise of a point's mean
    many = [share / (1 - share) * others * len(values) / noise for share in (low, high)]
    assert [ncf.cdf(statistic, 1, whole.df_resid, each) for each in many] == pytest.approx([0.975, 0.025], abs=1e-6)
    assert low < variance.shares()[0] < high


def test_intervals_of_shares_hold_the_truth():
    """2x2 grid, three seeds: A has a variance of 1 between points, and the noise of their means is 1/3."""
    rng, truth, held = np.random.default_rng(0), 1 / (1 + 1 / 3), 0
    rows = list(itertools.product((0, 1), (0, 1), range(3)))
    a, b, seeds = (list(each) for each in zip(*rows, strict=True))
    points = list(zip(a, b, strict=True))
    for _ in range(200):
        shared = rng.normal(0, 2, 3)
        values = [2.0 * x + shared[s] + rng.normal() for x, _, s in rows]
        low, high = Variance([indicators(a), indicators(b)], values, seeds, points).intervals()[0]
        held += low <= truth <= high
    assert held >= 180


# --- means -----------------------------------------------------------------------------------------------------


def test_the_margin_of_a_mean_is_scipys():
    values = [0.8, 0.9, 0.85, 0.7]
    low, high = t.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2)
    assert margin(values) == pytest.approx((high - low) / 2)
    assert margin([0.5]) is None


@pytest.mark.parametrize("count", [2, 3, 10])
def test_one_point_is_compared_as_a_paired_t_test_does(count: int):
    draw = np.random.default_rng(0)
    one, other = draw.normal(0.1, 1, count), draw.normal(0, 1, count)
    found = difference([list(one - other)])
    assert found is not None
    assert found.p_value == pytest.approx(ttest_rel(one, other).pvalue)
    low, high = ttest_rel(one, other).confidence_interval(0.95)
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high))


def test_differences_without_noise():
    assert difference([[0.5]]) is None
    for gains, p_value in (([0.5, 0.5], 0.0), ([0.0, 0.0], 1.0)):
        found = difference([gains])
        assert found is not None
        assert (found.p_value, found.margin) == (p_value, 0.0)


def test_other_points_help_to_estimate_the_noise_of_a_difference():
    """The degrees of freedom are those of all points where the reference follows the seeds, else of the seeds."""
    rng = np.random.default_rng(0)
    follows = rng.normal(0, 1, (16, 3))
    follows[0] += 3
    found, alone = difference(follows.tolist()), difference(follows[:1].tolist())
    assert found is not None
    assert alone is not None
    assert found.p_value < 1e-3 < alone.p_value
    apart = follows + rng.normal(0, 50, 3)
    found, alone = difference(apart.tolist()), difference(apart[:1].tolist())
    assert found is not None
    assert alone is not None
    assert found.p_value == pytest.approx(alone.p_value, rel=0.1)


def test_a_correction_makes_p_and_interval_wider_alike():
    gains = [[0.2, 0.3, 0.1, 0.2]]
    one, many = difference(gains), difference(gains, 8)
    assert one is not None
    assert many is not None
    assert many.p_value == pytest.approx(8 * one.p_value)
    free = 3
    assert many.margin / one.margin == pytest.approx(t.ppf(1 - 0.025 / 8, free) / t.ppf(0.975, free))


@pytest.mark.parametrize(("free", "rest"), [(1, 1), (2, 7), (3, 400)])
def test_an_interval_of_a_huge_effect_is_the_limit_of_the_noncentral_f(free: int, rest: int):
    """Metrics that seeds hardly change have F statistics far above a million."""
    low, high = _noncentrality(Squares(2e6 * free, free), Squares(rest, rest))
    assert ncf.cdf([2e6] * 2, free, rest, [low, high]) == pytest.approx([0.975, 0.025], abs=2e-3)
    far = _noncentrality(Squares(2e14 * free, free), Squares(rest, rest))
    assert far == pytest.approx((1e8 * low, 1e8 * high))


@pytest.mark.parametrize("together", [True, False])
def test_a_constant_for_each_group_is_a_column_for_each(together: bool):
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = [(point, seed) for point in range(6) for seed in range(4) if rng.random() < 0.6]
        points, seeds = ([row[place] for row in rows] for place in (0, 1))
        target, blocks = rng.normal(size=len(rows)), [indicators(seeds)] if together else []
        whole, fast = Fit.of([*blocks, indicators(points)], target), left_within(points, blocks, target)
        assert (fast.rank, fast.rest) == (whole.rank, pytest.approx(whole.rest, abs=1e-9))


def test_many_points_are_analysed_in_seconds():
    """With a column for each of them it takes ten times as long: two seconds here, an hour for a thousand points."""
    rng = np.random.default_rng(0)
    drawn, points = rng.random(150), np.repeat(np.arange(150), 3).tolist()
    values = (np.repeat(drawn, 3) + rng.normal(0, 0.1, 450)).tolist()
    variance = Variance([polynomial(np.repeat(drawn, 3).tolist(), 3)], values, [0, 1, 2] * 150, points, sampled=True)
    start = time.process_time()
    ((low, high),) = variance.intervals()
    assert time.process_time() - start < 1.2
    assert low < variance.shares()[0] < high


def test_an_interval_is_found_where_scipy_knows_no_tiny_probability():
    """`ncfdtr` is NaN at many noncentralities above a thousand, where the search for the upper end begins."""
    for free, rest, statistic in itertools.product((1, 2, 3, 4), (5, 15, 30), np.linspace(0.1, 12, 60)):
        low, high = _noncentrality(Squares(free * statistic, free), Squares(rest, rest))
        assert 0 <= low < high or (low, high) == (0, 0)
        assert high == 0 or ncf.cdf(statistic, free, rest, high) == pytest.approx(0.025, abs=1e-6)

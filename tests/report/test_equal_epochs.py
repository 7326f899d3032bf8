"""Runs that a scheduler stops: effects at equal epochs, against simulated sweeps of which the truth is known."""

import math
import random
from dataclasses import replace
from statistics import fmean, quantiles

import pytest

from eagleray.config.budget import OVER
from eagleray.report.analysis import Analysis, analyse
from eagleray.report.equal_epochs import at_equal_epochs
from eagleray.report.finding import finding
from eagleray.report.leaderboard import TrialResult
from eagleray.report.text import how_effects_are, what_intervals_are

EPOCHS, RUNGS, AT_ONCE = 27, (1, 3, 9), 2


def curve(quality: float, slow: float, draw: random.Random) -> dict[int, float]:
    """Return the metric after every epoch: it grows with training; a slow start is made good by epoch 9."""
    return {
        epoch: math.log(epoch, 3) + quality - slow * max(0.0, 1 - (epoch - 1) / 8) + draw.gauss(0, 0.05)
        for epoch in range(1, EPOCHS + 1)
    }


def asha(curves: list[dict[int, float]]) -> list[int]:
    """Return at which epoch each trial ends under asynchronous successive halving, as Ray's scheduler has it."""
    ended, seen = [0] * len(curves), {rung: list[float]() for rung in RUNGS}
    waiting, running = list(range(len(curves))), list[int]()
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(waiting.pop(0))
        for number in list(running):
            ended[number] += 1
            epoch, value = ended[number], curves[number][ended[number]]
            before = seen.get(epoch, [])
            cut = before[0] if len(before) == 1 else quantiles(before, n=3, method="inclusive")[1] if before else None
            if epoch in seen:
                before.append(value)
            if epoch == EPOCHS or (cut is not None and value < cut):
                running.remove(number)
    return ended


def swept(seed: int, effect: float = 0.0, slow: float = 0.0) -> list[TrialResult]:
    """Simulate a sweep of 18 points.

    Args:
        seed: of the luck of each point.
        effect: of the key `a` at every epoch.
        slow: how much a slower start `a` makes, which is of no consequence after epoch 9.
    """
    draw = random.Random(seed)
    points = [(place % 2, place) for place in range(18)]
    curves = [curve(draw.gauss(0, 0.3) + effect * a, slow * a, draw) for a, _ in points]
    return [
        TrialResult(
            f"{number:03d}", {"a": a, "b": b}, f"{number:03d}", f"{number:03d}", 0,
            state="finished" if end == EPOCHS else "stopped", message="" if end == EPOCHS else "by the scheduler",
            metrics={"knn": reached[end]}, epochs={e: {"knn": reached[e]} for e in range(1, end + 1)},
        )
        for number, ((a, b), reached, end) in enumerate(zip(points, curves, asha(curves), strict=True))
    ]  # fmt: skip


def at_their_ends(results: list[TrialResult]) -> list[TrialResult]:
    """Return the runs as an analysis sees them that takes the last number of each."""
    return [replace(each, state="finished", epochs={}) for each in results]


def found(results: list[TrialResult]) -> Analysis:
    return analyse(results, ["a"], "knn", "max")


def effect_of(results: list[TrialResult]) -> tuple[float, bool]:
    """Return how much better `a=1` seems than `a=0`, and whether that is said to be no chance."""
    (effect,) = found(results).effects.each
    means = {level.label: level.mean for level in effect.levels}
    return means["1"] - means["0"], effect.is_significant


SLOW = 0.5  # at epoch 1
SWEEPS = 60


def test_a_slow_start_is_no_worse_end():
    """Runs with a slow start are stopped early, and their last numbers are those of little training: a false effect."""
    sweeps = [swept(seed, slow=SLOW) for seed in range(SWEEPS)]
    naive, told = ([effect_of(view(each)) for each in sweeps] for view in (at_their_ends, list))
    assert sum(is_significant for _, is_significant in naive) > 0.7 * SWEEPS
    assert fmean(difference for difference, _ in naive) < -3 * SLOW, "in the end, no value of a is better"
    assert fmean(difference for difference, _ in told) == pytest.approx(-SLOW, abs=0.05), "which is true at epoch 1"
    for results in sweeps:
        assert finding(found(results)).startswith("at epoch 1, the last that all runs reached, a ")
        assert "; effects are told at epoch 1, the last that all runs reached" in what_intervals_are(found(results))
        assert any("; with a larger grace they are told later." in each for each in how_effects_are(found(results)))


def test_a_real_effect_is_found_more_often_and_in_its_real_size():
    sweeps = [swept(seed, effect=0.3) for seed in range(SWEEPS)]
    naive, told = ([effect_of(view(each)) for each in sweeps] for view in (at_their_ends, list))
    assert sum(known for _, known in told) > 1.5 * sum(known for _, known in naive)
    assert fmean(difference for difference, _ in told) == pytest.approx(0.3, abs=0.05)
    assert fmean(difference for difference, _ in naive) > 0.6, "winners were trained longer, too"


def test_what_has_no_effect_is_seldom_found():
    assert sum(effect_of(swept(seed))[1] for seed in range(SWEEPS)) < 0.12 * SWEEPS


def test_the_best_of_all_epochs_that_all_have_reached_counts():
    results = [replace(each, epochs={e: m for e, m in each.epochs.items() if e != 1}) for each in swept(0)]
    assert at_equal_epochs(results, "knn").obstacle == (
        "15 runs were stopped early, and no epoch is known at which all runs measured knn"
    )
    long = [each for each in swept(0) if len(each.epochs) > 1]
    assert at_equal_epochs(long, "knn").epoch == min(len(each.epochs) for each in long) == 3


def test_a_run_that_collapsed_or_failed_counts_where_it_ended():
    results = [each for each in swept(0) if len(each.epochs) > 1]
    broken = replace(swept(0)[0], name="broken", state="collapsed", epochs={1: {"knn": 0.1}}, metrics={"knn": 0.1})
    silent = replace(broken, name="silent", state="failed", epochs={}, metrics={})
    equal = at_equal_epochs([*results, broken, silent], "knn")
    values = {each.name: each.metrics.get("knn") for each in equal.results}
    assert equal.epoch == 3
    assert (values["broken"], values["silent"]) == (0.1, None)
    assert all(values[each.name] == each.epochs[3]["knn"] for each in results)


def test_what_the_budget_stopped_or_still_runs_is_left_out():
    """It was not chosen by its numbers: leaving it out is no selection, and its short training is no effect."""
    results = [trial for seed in range(2) for trial in complete(seed)]
    cut = [replace(each, state="stopped", message=OVER, metrics={"knn": 0.1}) for each in results[:3]]
    going = [replace(results[3], state="running", metrics={"knn": 0.1})]
    analysis = found([*cut, *going, *results[4:]])
    assert analysis.equal.note == "4 unfinished runs are left out of the effects"
    assert sum(level.runs for level in analysis.effects.each[0].levels) == len(results) - 4
    assert "4 unfinished runs are left out of the effects" in what_intervals_are(analysis)
    unfinished = found([*cut, *going])
    assert finding(unfinished).startswith(
        "no key is said to matter, because 4 unfinished runs are left out of the effects; the best has knn 0.100"
    )


def complete(seed: int) -> list[TrialResult]:
    return [replace(each, seed=seed, state="finished", message="") for each in swept(0)]


def test_from_mlflow_no_effect_is_told_and_the_directory_is_named():
    analysis = found([replace(each, epochs={}) for each in swept(0)])
    assert analysis.effects.each == []
    assert finding(analysis).startswith(
        "no key is said to matter, because 15 runs were stopped early, and no epoch is known at which all runs "
        "measured knn, as MLflow has no epochs: name the sweep's directory; the best has knn "
    )

"""What a comparison of several sweeps says, and what it cannot say."""

from collections.abc import Iterator
from itertools import combinations
from statistics import fmean

from eagleray.report.analysis import Analysis, analyse
from eagleray.report.finding import finding
from eagleray.report.leaderboard import Row
from eagleray.report.means import difference
from eagleray.report.numbers import p_text
from eagleray.report.trials import Comparison, Group, compared
from eagleray.report.variance import SIGNIFICANT


def conclusions(comparison: Comparison, analysis: Analysis) -> Iterator[str]:
    """Yield the finding, or why there is none.

    Sweeps that vary other keys answer other questions: each has its own finding.
    """
    sweeps = [group for group in comparison.groups if group.sweep]
    is_one_question = len({frozenset(group.varied) for group in comparison.groups}) == 1
    if comparison.obstacle:
        yield f"No finding over all: {comparison.obstacle}, so their {analysis.metric} cannot be ranked."
    elif is_one_question:
        yield finding(analysis)
    if len(sweeps) > 1 and (comparison.obstacle or not is_one_question):
        for group in sweeps:
            one = compared([group])
            alone = analyse(one.trials, one.varied, analysis.metric, analysis.mode, one.binned, analysis.table)
            yield f"{group.name}: {finding(alone)}"
    yield from best_against_best(comparison, analysis)


def best_against_best(comparison: Comparison, analysis: Analysis) -> Iterator[str]:
    """Yield a sentence for each pair of sweeps: whose best point is better.

    Seed by seed, because runs of one seed share their validation images. The best were chosen by the same numbers, so
    the p-value is a little too small; it is corrected for the number of pairs (Bonferroni).
    """
    if comparison.obstacle:
        return
    sign = 1 if analysis.mode == "max" else -1
    best = [(group.name, row) for group in comparison.groups if (row := _best(comparison, analysis, group))]
    pairs = list(combinations(best, 2))
    corrected = f", Bonferroni-corrected for {len(pairs)} comparisons" if len(pairs) > 1 else ""
    for (a, first), (b, second) in pairs:
        if first is second:
            yield f"{a} and {b} have the same best point, {first.name}."
            continue
        mine, its = dict(first.measured_runs), dict(second.measured_runs)
        gains = [sign * (mine[seed] - its[seed]) for seed in mine if seed in its and seed is not None]
        test = difference([gains], len(pairs)) if gains else None
        gain = fmean(gains) if gains else sign * (fmean(first.values) - fmean(second.values))
        (better, high), (worse, low) = ((a, first), (b, second))[:: 1 if gain >= 0 else -1]
        tested = "may be noise" if test is None else f"{p_text(test.p_value)}, t test paired by seed{corrected}"
        is_level = gain == 0 or (test is not None and test.p_value >= SIGNIFICANT)
        side = "above" if analysis.mode == "max" else "below"
        words = "is level with" if is_level else f"is {side}" if test is None else "is better than"
        yield (
            f"the best of {better} ({high.name}, {analysis.metric} {high.measured}) {words} the best of {worse} "
            f"({low.name}, {low.measured}; {tested})."
        )


def _best(comparison: Comparison, analysis: Analysis, group: Group) -> Row | None:
    names = {trial.name for trial, of in zip(comparison.trials, comparison.owners, strict=True) if group.name in of}
    return next((row for row in analysis.tried if names & set(row.runs)), None)

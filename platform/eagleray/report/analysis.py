"""Analyse a sweep: its leaderboard and its keys' effects.

`text.py` puts them into words. Runs are plain numbers here (`TrialResult`), wherever they were read from, and nothing
slow is imported.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, Literal

from eagleray.config.metrics import Table, shipped
from eagleray.report.effects import Effects, combined, levels
from eagleray.report.means import Difference, difference, margin
from eagleray.report.numbers import spread

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class TrialResult:
    """One run of a sweep or of a floor.

    Each has one seed.
    """

    name: str  # of its record
    params: Mapping[str, Any]  # the varied keys; a floor has none
    point: str  # runs of one point differ only in their seed
    label: str  # names the point in tables
    seed: int | None = None
    floor: str = ""  # its kind (`config.floors`); empty: a trial
    sweep: str = ""  # distinguishes the sweeps of an experiment
    state: str = "finished"
    metrics: Mapping[str, float] = field(default_factory=dict)  # the last of each
    message: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard: a point or floor.

    It has all seeds of the point or floor.
    """

    name: str
    params: Mapping[str, Any]
    runs: tuple[str, ...]  # the names of their records
    states: Mapping[str, int]  # state -> number of its runs
    values: tuple[float, ...]  # of the metric, one for each run that measured it
    seeds: tuple[int | None, ...]  # of these runs
    others: Mapping[str, tuple[float, ...]]  # the same of all other metrics
    floor: str = ""  # its kind; empty: a point of the sweep

    @property
    def metrics(self) -> dict[str, float]:
        """The means of all other metrics."""
        return {name: fmean(values) for name, values in self.others.items()}

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the runs, not of their mean.

        It is None for less than two runs.
        """
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def state(self) -> str:
        """The state of its runs, with counts if mixed."""
        if len(self.states) == 1:
            return next(iter(self.states))
        return ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))

    @property
    def margin(self) -> float | None:
        """Half the width of the 95 % t interval of the mean.

        It is None for less than two runs.
        """
        return margin(self.values)

    @property
    def measured(self) -> str:
        """The metric's mean, ± the margin of its t interval if any."""
        return spread(self.values)

    @property
    def measured_runs(self) -> list[tuple[int | None, float]]:
        """The seed and value of each run that measured it."""
        return list(zip(self.seeds, self.values, strict=True))


@dataclass(frozen=True)
class Compared:
    """The winner beside a floor."""

    floor: Row
    gain: float  # the winner's mean less the floor's, over the seeds that both have
    test: Difference | None  # None: less than two such seeds, so nothing is known of the noise


@dataclass(frozen=True)
class Analysis:
    """All results of a sweep."""

    metric: str
    mode: Mode
    varied: tuple[str, ...]
    binned: frozenset[str]  # the varied keys whose values were drawn from a range, not from a list
    rows: list[Row]  # of the leaderboard, the best first
    table: Table = field(default_factory=shipped)  # what its metrics mean

    @property
    def tried(self) -> list[Row]:
        """The points that measured something, the best first."""
        return [row for row in self.rows if not row.floor and row.values]

    @property
    def floors(self) -> list[Row]:
        """The floors that measured something, the best first."""
        return [row for row in self.rows if row.floor and row.values]

    @property
    def winner(self) -> Row | None:
        """The best point all of whose runs finished.

        If there is none, the best with a finished run, or the best.
        """
        whole = (row for row in self.tried if set(row.states) == {"finished"} and len(row.values) == len(row.runs))
        partly = (row for row in self.tried if "finished" in row.states)
        return next(whole, None) or next(partly, None) or next(iter(self.tried), None)

    @cached_property
    def effects(self) -> Effects:
        """The effects of the varied keys."""
        return Effects(self.tried, self.varied, self.binned)

    def levels(self, key: str) -> dict[str, str]:
        """Map each value of a key to its level (`effects.levels`)."""
        return levels(self.tried, key, is_drawn=key in self.binned)

    def parts(self, key: str) -> list[str]:
        """List the operations that a key combines, if it does."""
        return combined(self.tried, key)

    @cached_property
    def differences(self) -> list[Compared]:
        """Compare the winner with each floor, paired by seed.

        Runs of one seed share their validation images. The gains of the other points help to estimate the noise.
        """
        best = self.winner
        return [] if best is None else [self._difference(best, floor) for floor in self.floors]

    @property
    def comparisons(self) -> int:
        """How many differences from floors could have been the best.

        The winner is the best of all points: what is said of it must allow for that.
        """
        return len(self.tried) * len(self.floors)

    def _difference(self, best: Row, floor: Row) -> Compared:
        its = dict(floor.measured_runs)
        seeds = [seed for seed, _ in best.measured_runs if seed in its and seed is not None]
        if not seeds:
            return Compared(floor, fmean(best.values) - fmean(floor.values), None)
        known = [dict(row.measured_runs) for row in (best, *(row for row in self.tried if row is not best))]
        gains = [[each[seed] - its[seed] for seed in seeds] for each in known if set(seeds) <= set(each)]
        return Compared(floor, fmean(gains[0]), difference(gains, self.comparisons))


def analyse(
    results: Iterable[TrialResult],
    varied: Iterable[str],
    metric: str,
    mode: Mode,
    binned: Collection[str] = (),
    table: Table | None = None,
) -> Analysis:
    """Analyse the runs of a sweep.

    Args:
        results: of its runs and floors, in any order.
        varied: the keys that the sweep varies.
        metric: the one to compare.
        mode: whether more (max) or less (min) is better.
        binned: the keys whose values were drawn from a range: nearly all differ, so ranges of values are compared.
        table: the declarations of the metrics; by default those that ship with the project.
    """
    rows = leaderboard(results, metric, mode)
    return Analysis(metric, mode, tuple(varied), frozenset(binned), rows, shipped() if table is None else table)


def leaderboard(results: Iterable[TrialResult], metric: str, mode: Mode) -> list[Row]:
    """Return a row for each point and floor, best first.

    Those without the metric come last. Equal ones are in order of their names, whatever ran first.
    """
    points: dict[tuple[str, ...], list[TrialResult]] = {}
    for each in results:
        points.setdefault((each.sweep, each.floor, each.point), []).append(each)
    # If several encoders or datasets are compared, the label "random init" alone would not say which.
    alike = Counter(runs[0].label for runs in points.values() if runs[0].floor)
    rows = [_row(runs, metric, is_label_enough=alike[runs[0].label] < 2) for runs in points.values()]
    sign = -1 if mode == "max" else 1
    return sorted(rows, key=lambda row: (math.inf if row.mean is None else sign * row.mean, row.name))


def _row(runs: Sequence[TrialResult], metric: str, *, is_label_enough: bool) -> Row:
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.metrics.items():
            values.setdefault(name, []).append(value)
    first = runs[0]
    return Row(
        first.label if is_label_enough else first.point,
        first.params,
        runs=tuple(run.name for run in runs),
        states=Counter(run.state for run in runs),
        values=tuple(values.pop(metric, ())),
        seeds=tuple(run.seed for run in runs if metric in run.metrics),
        others={name: tuple(each) for name, each in values.items()},
        floor=first.floor,
    )

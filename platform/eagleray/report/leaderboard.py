"""The leaderboard: runs of one point in one row, the best first.

Runs are plain numbers here (`TrialResult`), wherever they were read from.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from eagleray.report.means import margin
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
    state: str = "finished"
    metrics: Mapping[str, float] = field(default_factory=dict)  # the last of each
    message: str = ""
    epochs: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # the metrics after each


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


def leaderboard(results: Iterable[TrialResult], metric: str, mode: Mode) -> list[Row]:
    """Return a row for each point and floor, best first.

    Those without the metric come last. Equal ones are in order of their names, whatever ran first.
    """
    points: dict[tuple[str, str], list[TrialResult]] = {}
    for each in results:
        points.setdefault((each.floor, each.point), []).append(each)
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

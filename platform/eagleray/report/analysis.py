"""Analyse a sweep: its leaderboard and its keys' effects.

`text.py` puts them into words. Runs are plain numbers here (`TrialResult`), wherever they were read from, and nothing
slow is imported.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, Literal

from eagleray.config.metrics import Table, shipped
from eagleray.report.variance import spans, variance

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
    metrics: Mapping[str, float]  # means of all other metrics
    floor: str = ""  # its kind; empty: a point of the sweep

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
    def measured(self) -> str:
        """The metric's mean, ± its standard deviation if any."""
        return spread(self.values)


@dataclass(frozen=True)
class Level:
    """One value, or range of values, of a varied key."""

    label: str
    values: tuple[float, ...]  # of the metric, one for each point
    place: str  # in a sentence: `at 0.5`, `with crop`

    @property
    def mean(self) -> float:
        return fmean(self.values)


@dataclass(frozen=True)
class Effect:
    """The effect of one varied key on the metric."""

    key: str  # a varied key, or one of the operations that it combines
    of: str  # the varied key
    levels: tuple[Level, ...]  # in the order of the values
    share: float  # of the metric's variance between points that is between levels (eta squared)
    p_value: float | None  # of the test that `Analysis.test` names; None: too few runs to estimate the noise


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
        """The best point with a run that finished.

        If no run finished, it is the best point.
        """
        return next((row for row in self.tried if "finished" in row.states), next(iter(self.tried), None))

    @cached_property
    def effects(self) -> list[Effect]:
        """The effects of keys with more than one value.

        The smallest p-value comes first.
        """
        columns = [each for key in self.varied for each in self._columns(key) if len(set(each.labels)) > 1]
        if len(self.varied) == 1 and not self.parts(self.varied[0]):
            columns = [replace(each, labels=self._per_run(each.labels)) for each in columns]
            values = [value for row in self.tried for value in row.values]
        else:  # runs of one point share all their keys, so they are not independent
            values = [fmean(row.values) for row in self.tried]
        explained = variance([each.labels for each in columns], values) if columns else []
        # Bonferroni: with more keys it is more likely that one of them looks good by chance.
        effects = [
            each.effect(values, share, None if p is None else min(1.0, p * len(columns)))
            for each, (share, p) in zip(columns, explained, strict=True)
        ]
        return sorted(effects, key=lambda effect: (effect.p_value is None, effect.p_value, -effect.share))

    @property
    def test(self) -> str:
        """The name of the test that gives the p-values."""
        keys = len(self.effects)
        return f"F test, Bonferroni-corrected for {keys} keys" if keys > 1 else "F test"

    def levels(self, key: str) -> dict[str, str]:
        """Map each value of a key to its level.

        The value is as `param_text` writes it, the level is its label. The mapping is in the order of the levels.
        """
        values = [row.params[key] for row in self.tried]
        if all(isinstance(value, int | float) for value in values):
            values = sorted(values)
        labels = spans(values) if key in self.binned else map(param_text, values)
        return dict(zip(map(param_text, values), labels, strict=True))

    def parts(self, key: str) -> list[str]:
        """List the operations that a key combines, commonest first.

        Its values are like `crop` or `crop+jitter`. The list is empty for a key that combines none.
        """
        values = [str(row.params[key]).split("+") for row in self.tried]
        counts = Counter(part for value in values for part in value)
        return [part for part, _ in counts.most_common()] if any(len(value) > 1 for value in values) else []

    def _columns(self, key: str) -> "Iterator[_Column]":
        if parts := self.parts(key):
            for part in parts:
                has = [part in str(row.params[key]).split("+") for row in self.tried]
                labels = ["with" if each else "without" for each in has]
                yield _Column(part, key, labels, {"with": f"with {part}", "without": f"without {part}"})
            return
        names = self.levels(key)
        labels = [names[param_text(row.params[key])] for row in self.tried]
        yield _Column(key, key, labels, {label: f"at {label}" for label in names.values()})

    def _per_run(self, labels: Sequence[str]) -> list[str]:
        return [label for row, label in zip(self.tried, labels, strict=True) for _ in row.values]


@dataclass(frozen=True)
class _Column:
    """A key, or one of its operations, with its levels.

    There is one level for every point.
    """

    key: str
    of: str
    labels: list[str]
    places: Mapping[str, str]  # label -> its form in a sentence; in the order of the levels

    def effect(self, values: Sequence[float], share: float, p_value: float | None) -> Effect:
        groups: dict[str, list[float]] = {label: [] for label in self.places if label in self.labels}
        for label, value in zip(self.labels, values, strict=True):
            groups[label].append(value)
        levels = tuple(Level(label, tuple(each), self.places[label]) for label, each in groups.items())
        return Effect(self.key, self.of, levels, share, p_value)


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

    Those without the metric come last.
    """
    points: dict[tuple[str, ...], list[TrialResult]] = {}
    for each in results:
        points.setdefault((each.sweep, each.floor, each.point), []).append(each)
    # If several encoders or datasets are compared, the label "random init" alone would not say which.
    alike = Counter(runs[0].label for runs in points.values() if runs[0].floor)
    rows = [_row(runs, metric, is_label_enough=alike[runs[0].label] < 2) for runs in points.values()]
    sign = -1 if mode == "max" else 1
    return sorted(rows, key=lambda row: math.inf if row.mean is None else sign * row.mean)


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
        metrics={name: fmean(each) for name, each in values.items()},
        floor=first.floor,
    )


def spread(values: Sequence[float]) -> str:
    """Return the mean as text, ± the standard deviation.

    Two or more values have a deviation; without a value the text is a dash.
    """
    if len(values) < 2:
        return number(values[0]) if values else "–"
    return f"{number(fmean(values))} ± {number(stdev(values))}"


def number(value: float) -> str:
    """Return a number as text with three decimals.

    Very small and large ones have three digits.
    """
    if 1e3 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.3g}"


def param_text(value: Any) -> str:
    """Return a param as text for tables.

    Params are as `config.search_points.as_param` gives them: floats are shortened, None is `default`.
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "default"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""What a sweep found: the leaderboard, and what made the difference. `wording.py` says it.

It knows runs as plain numbers (`Trial`), wherever they were read from, and imports nothing slow.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, Literal

from eagleray.config.metrics import Table, shipped
from eagleray.report.variance import spans, variance
from eagleray.runs.record import PLACES, Record

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, or one of the floors."""

    name: str
    params: Mapping[str, Any]  # the varied keys; none of a floor
    state: str = "finished"
    metrics: Mapping[str, float] = field(default_factory=dict)  # the last of each
    message: str = ""
    is_floor: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard: the runs of one point of the sweep, its seeds together."""

    name: str
    params: Mapping[str, Any]
    states: Mapping[str, int]  # how many of its runs ended how
    values: tuple[float, ...]  # of the metric, one a run that measured it
    metrics: Mapping[str, float]  # every other one's mean
    is_floor: bool = False

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Of the runs, not of their mean; None of less than two."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def runs(self) -> int:
        """How many there are, with those that measured nothing."""
        return sum(self.states.values())

    @property
    def state(self) -> str:
        """`finished`, or how many of the runs ended otherwise."""
        if len(self.states) == 1:
            return next(iter(self.states))
        return ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))

    @property
    def measured(self) -> str:
        """The metric's mean, ± its standard deviation where there is one."""
        spread = "" if self.std is None else f" ± {number(self.std)}"
        return "–" if self.mean is None else f"{number(self.mean)}{spread}"


@dataclass(frozen=True)
class Level:
    """One value of a varied key, or one range of values."""

    label: str
    values: tuple[float, ...]  # of the metric, one a point
    place: str  # as a sentence has it: `at 0.5`, `with crop`

    @property
    def mean(self) -> float:
        return fmean(self.values)


@dataclass(frozen=True)
class Effect:
    """What one varied key did to the metric."""

    key: str  # a varied key, or one of the operations that it combines
    of: str  # the varied key
    levels: tuple[Level, ...]  # in the order of the values
    share: float  # of the metric's variance between points that lies between levels (eta squared)
    chance: float | None  # how often noise alone explains as much (F test); None: nothing tells noise apart


@dataclass(frozen=True)
class Answer:
    """All that a sweep has to say."""

    metric: str
    mode: Mode
    varied: tuple[str, ...]
    binned: frozenset[str]  # those of them that were drawn from a range, and not from a list
    rows: list[Row]  # of the leaderboard, the best first
    table: Table = field(default_factory=shipped)  # what its metrics mean

    @property
    def tried(self) -> list[Row]:
        """The points that measured something, the best first."""
        return [row for row in self.rows if not row.is_floor and row.values]

    @property
    def floors(self) -> list[Row]:
        """What was measured of them, the best first."""
        return [row for row in self.rows if row.is_floor and row.values]

    @property
    def winner(self) -> Row | None:
        """The best point with a run that finished; without any, the best."""
        return next((row for row in self.tried if "finished" in row.states), next(iter(self.tried), None))

    @cached_property
    def effects(self) -> list[Effect]:
        """Of every key that took more than one value, the least likely to be noise first."""
        columns = [each for key in self.varied for each in self._columns(key) if len(set(each.labels)) > 1]
        if len(self.varied) == 1 and not self.parts(self.varied[0]):
            columns = [replace(each, labels=self._a_run(each.labels)) for each in columns]
            values = [value for row in self.tried for value in row.values]
        else:  # runs of one point share all their keys: they are no independent witnesses
            values = [fmean(row.values) for row in self.tried]
        explained = variance([each.labels for each in columns], values) if columns else []
        found = [each.effect(values, *shares) for each, shares in zip(columns, explained, strict=True)]
        return sorted(found, key=lambda effect: (effect.chance is None, effect.chance, -effect.share))

    def levels(self, key: str) -> dict[str, str]:
        """From each value of a key, as `shown`, to the label of its level; in the order of the levels."""
        values = [row.params[key] for row in self.tried]
        if all(isinstance(value, int | float) for value in values):
            values = sorted(values)
        labels = spans(values) if key in self.binned else map(shown, values)
        return dict(zip(map(shown, values), labels, strict=True))

    def parts(self, key: str) -> list[str]:
        """The operations that a key combines (`crop`, `crop+jitter`), most common first; none of a plain key."""
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
        labels = [names[shown(row.params[key])] for row in self.tried]
        yield _Column(key, key, labels, {label: f"at {label}" for label in names.values()})

    def _a_run(self, labels: Sequence[str]) -> list[str]:
        return [label for row, label in zip(self.tried, labels, strict=True) for _ in row.values]


@dataclass(frozen=True)
class _Column:
    """A key, or one of the operations it combines, and its level in every point."""

    key: str
    of: str
    labels: list[str]
    places: Mapping[str, str]  # label -> how a sentence has it; in the order of the levels

    def effect(self, values: Sequence[float], share: float, chance: float | None) -> Effect:
        groups: dict[str, list[float]] = {label: [] for label in self.places if label in self.labels}
        for label, value in zip(self.labels, values, strict=True):
            groups[label].append(value)
        levels = tuple(Level(label, tuple(each), self.places[label]) for label, each in groups.items())
        return Effect(self.key, self.of, levels, share, chance)


def answer(
    trials: Iterable[Trial],
    varied: Iterable[str],
    metric: str,
    mode: Mode,
    binned: Collection[str] = (),
    table: Table | None = None,
) -> Answer:
    """Everything that follows from the runs of a sweep.

    Args:
        trials: its runs and floors, in any order.
        varied: the keys that the sweep varies.
        metric: what is compared.
        mode: which end of it is better.
        binned: the keys drawn from a range: where nearly all values differ, ranges of them are compared.
        table: what the metrics mean; by default those that ship with the project.
    """
    rows = leaderboard(trials, metric, mode)
    return Answer(metric, mode, tuple(varied), frozenset(binned), rows, shipped() if table is None else table)


def trials_of(sweep: Record, varied: Sequence[str]) -> list[Trial]:
    """The runs of a sweep from its directory; those that still train have the numbers of their last epoch."""
    found = []
    for record in sweep.children():
        status, rows = record.status, record.metrics()
        measured = {name: value for row in rows for name, value in row.items() if name not in PLACES}
        metrics = _finite({**measured, **status["summary"]})
        is_floor = record.tags.get("kind") == "floor"
        params = {} if is_floor else {key: record.params.get(key) for key in varied}
        found.append(Trial(record.name, params, status["state"], metrics, status["message"], is_floor))
    return found


def trials_of_rows(rows: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """The runs of an experiment as MLflow has them (`tracking.rows`), with the params that differ between them."""
    parents = {row["parent"] for row in rows}
    runs = [row for row in rows if row["run_id"] not in parents]
    floors = [row for row in runs if row["parent"] is not None and not row["params"]]
    trials = [row for row in runs if row not in floors]
    texts = {key: {row["params"].get(key) for row in trials} for row in trials for key in row["params"]}
    varied = [key for key, values in texts.items() if len(values) > 1 and key != "seed"]
    return [
        *(Trial(row["name"], {}, row["state"], _finite(row["metrics"]), is_floor=True) for row in floors),
        *(
            Trial(row["name"], {k: _value(row["params"].get(k)) for k in varied}, row["state"], _finite(row["metrics"]))
            for row in trials
        ),
    ]


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _value(text: str | None) -> Any:
    """A param as MLflow keeps it, a text, as the number it was."""
    for number_of in (int, float):
        try:
            return number_of(text or "")
        except ValueError:
            continue
    return text


def leaderboard(trials: Iterable[Trial], metric: str, mode: Mode) -> list[Row]:
    """One row a point and a floor, the best first; what measured nothing comes last, and nothing is left out."""
    points: dict[str, list[Trial]] = {}
    for trial in trials:
        point = trial.name if trial.is_floor else json.dumps(trial.params, sort_keys=True, default=str)
        points.setdefault(point, []).append(trial)
    sign = -1 if mode == "max" else 1
    rows = [_row(runs, metric) for runs in points.values()]
    ranked = sorted(rows, key=lambda row: math.inf if row.mean is None else sign * row.mean)
    return _short_floors(ranked)


def _short_floors(rows: Sequence[Row]) -> list[Row]:
    """`raw pixels digits` is `raw pixels`, where no other images are compared."""
    short = Counter(" ".join(row.name.split()[:2]) for row in rows if row.is_floor)
    names = {row.name: " ".join(row.name.split()[:2]) for row in rows if row.is_floor}
    return [replace(row, name=names[row.name]) if row.is_floor and short[names[row.name]] == 1 else row for row in rows]


def _row(runs: Sequence[Trial], metric: str) -> Row:
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.metrics.items():
            values.setdefault(name, []).append(value)
    measured = tuple(values.pop(metric, ()))
    means = {name: fmean(each) for name, each in values.items()}
    states = Counter(run.state for run in runs)
    name = runs[0].name.partition("-seed")[0]
    return Row(name, runs[0].params, states, measured, means, runs[0].is_floor)


def number(value: float) -> str:
    """A number at the length that can be compared at a glance."""
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.3g}"


def shown(value: Any) -> str:
    """A setting as short as it can be read: a list of operations as `crop+flip`, a variant by its values."""
    if isinstance(value, Mapping):
        return " ".join(shown(each) for each in value.values())
    if isinstance(value, list | tuple):
        return "+".join(map(shown, value)) or "nothing"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "default"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)

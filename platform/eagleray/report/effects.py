"""The effects of a sweep's keys on its metric."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from eagleray.config.settings import as_names
from eagleray.report.leaderboard import Row
from eagleray.report.least_squares import indicators, polynomial
from eagleray.report.numbers import distinct_texts, param_text
from eagleray.report.variance import ACT_TOGETHER, SIGNIFICANT, Variance

CUBIC = 3  # highest degree of the effect of a key whose values were drawn from a range
SHAPES = {1: "linear", 2: "quadratic", 3: "cubic"}
PER_PARAMETER = 4  # points for each parameter of the effects: the mean error of shares is then about 0.06


@dataclass(frozen=True)
class Level:
    """One value, or range of values, of a varied key."""

    label: str
    place: str  # in a sentence: `at 0.5`, `with crop`
    mean: float  # of the metric, fitted: seeds and other keys give no level an advantage
    margin: float | None  # half the width of its t interval
    runs: int


@dataclass(frozen=True)
class Effect:
    """The effect of one varied key on the metric."""

    key: str  # a varied key, or one of the operations that it combines
    of: str  # the varied key
    levels: tuple[Level, ...]  # in the order of the values
    p_value: float | None  # of the test that `Effects.test` names; None: too few runs to estimate the noise

    @property
    def is_significant(self) -> bool:
        return self.p_value is not None and self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Share:
    """The share of a key in the metric's variance between points."""

    key: str
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Effects:
    """The effects of all keys with more than one value.

    Args:
        rows: the points that measured something.
        varied: the keys that the sweep varies.
        binned: those whose values were drawn from a range.
    """

    rows: "Sequence[Row]"
    varied: Sequence[str]
    binned: Collection[str]

    @cached_property
    def each(self) -> list[Effect]:
        """The effects; the smallest p-value comes first."""
        # Bonferroni: with more keys it is more likely that one of them looks good by chance.
        found = []
        for place, column in enumerate(self._columns):
            p_value = self._variance.p_value(place)
            corrected = None if p_value is None else min(1.0, p_value * len(self._columns))
            found.append(Effect(column.key, column.of, tuple(self._levels(place)), corrected))
        return sorted(found, key=lambda effect: (effect.p_value is None, effect.p_value))

    @cached_property
    def test(self) -> str:
        """The name of the test that gives the p-values."""
        drawn = any(column.is_drawn for column in self._columns)
        parts = [f"F test of {SHAPES[self._degree]} effects" if drawn else "F test"]
        parts += ["seeds as blocks"] if self._variance.blocks else []
        parts += [f"Bonferroni-corrected for {len(self._columns)} keys"] if len(self._columns) > 1 else []
        return ", ".join(parts)

    @property
    def interaction(self) -> float | None:
        """The p-value of the keys acting together, if they do.

        It is that of the additive model's lack of fit.
        """
        p_value = self._variance.lack_of_fit if len(self._columns) > 1 and not self._variance.sampled else None
        return p_value if p_value is not None and p_value < ACT_TOGETHER else None

    @property
    def lacking(self) -> str:
        """What is missing to rank the keys; empty if nothing."""
        if self._variance.sampled and len(self.rows) <= (least := PER_PARAMETER * self._parameters(CUBIC)):
            return f"{len(self.rows)} points are too few to rank the keys by their share: it takes {least + 1}"
        if not self._variance.is_joint or any(effect.p_value is None for effect in self.each):
            return "there are too few runs to rank the keys by their share: set seeds=3"
        return ""

    @cached_property
    def shares(self) -> list[Share]:
        """The keys by their share, the largest first.

        It is empty if something is lacking.
        """
        if self.lacking:
            return []
        numbers = zip(self._columns, self._variance.shares(), self._variance.intervals(), strict=True)
        return sorted((Share(one.key, share, ends) for one, share, ends in numbers), key=lambda each: -each.share)

    @property
    def interval(self) -> str:
        """The name of the intervals of the shares."""
        return "jackknife over points" if self._variance.sampled else "noncentral F"

    @cached_property
    def _columns(self) -> "list[_Column]":
        columns = (each for key in self.varied for each in self._columns_of(key))
        return [column for column in columns if len(set(column.labels)) > 1]

    @cached_property
    def _variance(self) -> Variance:
        runs = [(place, seed, value) for place, row in enumerate(self.rows) for seed, value in row.measured_runs]
        seeds = [None if "seed" in self.varied else seed for _, seed, _ in runs]
        columns = [
            polynomial([column.values[place] for place, _, _ in runs], self._degree)
            if column.is_drawn
            else indicators([column.labels[place] for place, _, _ in runs])
            for column in self._columns
        ]
        return Variance(
            columns,
            [value for _, _, value in runs],
            seeds,
            [place for place, _, _ in runs],
            sampled=any(column.is_drawn for column in self._columns),
        )

    @property
    def _degree(self) -> int:
        """Return the degree that the points suffice for."""
        return next((each for each in (3, 2) if PER_PARAMETER * self._parameters(each) < len(self.rows)), 1)

    def _parameters(self, degree: int) -> int:
        return sum(degree if column.is_drawn else len(set(column.labels)) - 1 for column in self._columns)

    def _levels(self, place: int) -> Iterator[Level]:
        column = self._columns[place]
        labels = [label for label, row in zip(column.labels, self.rows, strict=True) for _ in row.values]
        for label, where in column.places.items():
            if label in labels:
                rows = [each == label for each in labels]
                yield Level(label, where, *self._variance.mean(place, rows), sum(rows))

    def _columns_of(self, key: str) -> "Iterator[_Column]":
        if parts := combined(self.rows, key):
            for part in parts:
                has = [part in (as_names(row.params[key]) or ()) for row in self.rows]
                labels = ["with" if each else "without" for each in has]
                yield _Column(part, key, labels, {"with": f"with {part}", "without": f"without {part}"})
            return
        names = levels(self.rows, key, is_drawn=key in self.binned)
        labels = [names[row.params[key]] for row in self.rows]
        values = [row.params[key] for row in self.rows] if key in self.binned else []
        yield _Column(key, key, labels, {label: f"at {label}" for label in names.values()}, values)


@dataclass(frozen=True)
class _Column:
    """A key, or one of its operations, at every point."""

    key: str
    of: str
    labels: list[str]
    places: Mapping[str, str]  # label -> its form in a sentence; in the order of the levels
    values: Sequence[float] = ()  # if they were drawn from a range

    @property
    def is_drawn(self) -> bool:
        return bool(self.values)


def levels(rows: "Sequence[Row]", key: str, *, is_drawn: bool) -> dict[Any, str]:
    """Map each value of a key to its level.

    The level is its label. The mapping is in the order of the levels.
    """
    values: list[Any] = [row.params[key] for row in rows]
    if all(isinstance(value, int | float) for value in values):
        values = sorted(values)
    return dict(zip(values, spans(values), strict=True)) if is_drawn else distinct_texts(values)


def combined(rows: "Sequence[Row]", key: str) -> list[str]:
    """List the operations that a key combines, commonest first.

    Its values are like `crop` or `crop+jitter`. The list is empty for a key that combines none, and if it is unset
    somewhere: the method's own operations are no combination of these.
    """
    values = [names for row in rows if (names := as_names(row.params[key])) is not None]
    counts = Counter(name for names in values for name in names)
    is_combined = len(values) == len(rows) and any(len(names) > 1 for names in values)
    return [name for name, _ in counts.most_common()] if is_combined else []


def spans(values: Sequence[float]) -> list[str]:
    """Label each of the sorted values with its range.

    Ranges are thirds of the values, or halves if they are few. Values that differ have at least two.
    """
    bins = 3 if len(values) >= 9 else 2
    distinct = sorted(set(values))
    cuts = sorted({values[round(len(values) * part / bins)] for part in range(1, bins)} - {values[0]}) or distinct[1:2]
    spans = [f"{param_text(low)} to {param_text(high)}" for low, high in pairwise([values[0], *cuts, values[-1]])]
    return [spans[sum(value >= cut for cut in cuts)] for value in values]

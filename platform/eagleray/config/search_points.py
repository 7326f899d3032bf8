"""The points of a sweep: runs that answer its question.

They are known at the start, and the same on every machine.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.config.registry import find
from eagleray.config.run import Run, changed
from eagleray.config.settings import as_param, is_neutral, settings
from eagleray.config.sweep import Sweep
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import Choice, Range
from eagleray.contracts.seeds import python_generator

SEVERAL = "several"  # the value of a setting in a sweep's params if its trials differ in it
SEARCHES = ("search", "trials", "seeds", "metric", "mode", "scheduler")  # a sweep's settings among its params


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    number: int  # runs of one number differ only in their seed
    values: Mapping[str, Any]  # the varied values, by key
    seed: int
    label: str  # names the point in tables
    name: str  # names the run and its directory

    @property
    def varied(self) -> dict[str, Any]:
        """The varied values and the seed, as the record keeps them."""
        return {key: as_param(value) for key, value in self.values.items()} | {"seed": self.seed}

    @property
    def tags(self) -> dict[str, str]:
        """Its place in the sweep, as record tags."""
        return {"kind": "trial", "point": str(self.number), "label": self.label, "varied": varied_keys(self.values)}

    def alone(self, sweep: Sweep) -> Run:
        """Return its run as a person would train it.

        The trial's run.yaml holds it, so that training it again, longer, is an ordinary run.
        """
        return changed(sweep.variant(self.values), {"seed": self.seed})

    def run(self, sweep: Sweep) -> Run:
        """Return its run as the sweep trains it."""
        run = sweep.variant(self.values)
        return changed(run, {"seed": self.seed, **imposed(sweep, run)})

    def params(self, sweep: Sweep) -> dict[str, Any]:
        """Return all settings, as the record keeps them."""
        return {**settings(self.run(sweep)), **self.varied}


def as_trial(sweep: Sweep, run: Run) -> Run:
    """Make a run a trial of a sweep."""
    return changed(run, imposed(sweep, run))


def imposed(sweep: Sweep, run: Run) -> dict[str, Any]:
    """Return the settings that a sweep imposes on a run.

    Trials are compared on validation, so they do not use the test set.
    """
    own: dict[str, Any] = {"tracking.experiment": sweep.name, "evaluate.test": False}
    if run.threads is None:
        own["threads"] = max(1, int(sweep.cpus_per_trial))
    if not sweep.gpus_per_trial:
        own["device"] = "cpu"
    if sweep.changes_trials:
        # Every change starts from a checkpoint, which must still exist when a slower trial uses it.
        own["checkpoints.every_epochs"] = 1
        own["checkpoints.keep"] = max(run.checkpoints.keep, sweep.grace + 2)
    return own


def varied_keys(keys: Iterable[str]) -> str:
    """Return the varied keys as a record's tag."""
    return " ".join(keys)


def sweep_params(sweep: Sweep) -> dict[str, Any]:
    """Return the params of a sweep's own record.

    They are how it searches, what it varies, and the settings of its trials: the value that all share, or `SEVERAL`.
    """
    runs = map(sweep.variant, assignments(sweep)) if not sweep.learns else sweep.crossed()
    tables = [settings(run) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table if key != "seed" and not is_neutral(key))
    values = {key: {table.get(key) for table in tables} for key in keys}
    shared = {key: next(iter(each)) if len(each) == 1 else SEVERAL for key, each in values.items()}
    own = {key: value for key in SEARCHES if (value := getattr(sweep, key)) is not None}
    return {**shared, **own, **{f"vary.{key}": _shown(span) for key, span in sweep.ranges().items()}}


def points(sweep: Sweep, begun: Iterable[Point] = ()) -> list[Point]:
    """Return a sweep's runs, where known at the start.

    Each assignment with each seed.

    Args:
        sweep: whose runs.
        begun: runs of an earlier start. They keep number and name: a sweep that was extended has its values in another
            order than before.
    """
    kept = {(point.number, point.seed): point for point in begun}
    numbered = _numbered(assignments(sweep), {point.number: point.values for point in begun})
    all_ = (point for number, values in numbered.items() for point in seeded(sweep, number, values))
    return [kept.get((point.number, point.seed), point) for point in all_]


def _numbered(wanted: list[dict[str, Any]], before: Mapping[int, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Give points their numbers; those that have one keep it."""
    left, new = list(before.values()), []
    for values in wanted:
        if values in left:
            left.remove(values)
        else:
            new.append(values)
    free = (number for number in itertools.count() if number not in before)
    added = dict(zip(free, new[: max(0, len(wanted) - len(before))], strict=False))
    return dict(sorted({**before, **added}.items()))


def seeded(sweep: Sweep, number: int, values: Mapping[str, Any]) -> Iterator[Point]:
    """Yield the runs of one point, one per seed.

    Seeds count up from that of its run.
    """
    first = sweep.variant(values).seed
    for seed in range(first, first + sweep.seeds):
        label = "-".join([f"{number:03d}", *_variant(values)])
        yield Point(number, values, seed, label, f"{label}-seed{seed}" if sweep.seeds > 1 else label)


def assignments(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the varied values of each point.

    A function of the sweep file alone; none if the search learns.
    """
    return [] if sweep.learns else find("search", sweep.search).load()().assignments(sweep)


def trial_count(sweep: Sweep) -> int:
    """Return the number of runs of a sweep."""
    return (sweep.trials or 0) * sweep.seeds if sweep.learns else len(points(sweep))


def combinations(sweep: Sweep) -> list[dict[str, Any]]:
    """Return combinations of listed values.

    All of them, or `trials` drawn by the seed; the last key changes fastest.
    """
    lists = {key: span.values for key, span in sweep.ranges().items() if isinstance(span, Choice)}
    count, sizes = math.prod(map(len, lists.values())), [len(values) for values in lists.values()]
    numbers = range(count) if sweep.trials is None else _drawn(count, sweep.trials, sweep.seed)
    places = (np.unravel_index(number, sizes) for number in numbers)
    return [{key: lists[key][i] for key, i in zip(lists, place, strict=True)} for place in places]


def read(sweep: Sweep, params: Mapping[str, Any]) -> dict[str, Any]:
    """Read a point's values from its params (see `Point.params`).

    Raises:
        ConfigError: the sweep has no such value.
    """
    return {key: _value(key, span, params.get(key)) for key, span in sweep.ranges().items()}


def _variant(values: Mapping[str, Any]) -> list[str]:
    """Return a variant's words, short enough for a directory."""
    return ["".join(c if c.isalnum() else "_" for c in as_param(values["run"]))[:40]] if "run" in values else []


def _drawn(count: int, wanted: int, seed: int) -> list[int]:
    """Draw `wanted` different numbers below `count`.

    More of them begin with the same: a sweep can be extended.
    """
    rng, numbers = python_generator(seed), dict[int, None]()
    while len(numbers) < min(wanted, count):
        numbers[rng.randrange(count)] = None
    return list(numbers)


def _shown(span: Range) -> str:
    """Return a range as a sweep file has it."""
    return f"[{', '.join(str(as_param(value)) for value in span.values)}]" if isinstance(span, Choice) else str(span)


def _value(key: str, span: Range, text: Any) -> Any:
    values = [value for value in span.values if as_param(value) == text] if isinstance(span, Choice) else [text]
    if not values:
        raise ConfigError(f"this sweep has no {key}={text}")
    return values[0]

"""Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) as a search of Ray Tune that knows of seeds.

Ray's own `OptunaSearch` runs a point once; its `Repeater` forgets what it was told when a sweep is resumed.
"""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, ClassVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from eagleray.config import Sweep
from eagleray.config.search_points import Point, seeded
from eagleray.contracts.ranges import Choice, IntRange, LogUniform, Range, rounded
from eagleray.contracts.search import Search, Values


class OptunaTpe(Search):
    """Suggest points by Optuna's tree-structured Parzen estimator."""

    learns: ClassVar[bool] = True

    def build(self, sweep: Sweep, config: Callable[[Point], Values], past: Mapping[int, Values]) -> Searcher:
        """Return the searcher."""
        return Tpe(sweep, config, past)


class Tpe(Searcher):
    """Suggests points; a point's worth is the mean over its seeds.

    Args:
        sweep: what is varied, and the metric.
        config: from a point to the configuration of its Tune trial.
        past: values of the points that a sweep which is resumed has begun, by their number.
    """

    def __init__(self, sweep: Sweep, config: Callable[[Point], dict[str, Any]], past: Mapping[int, Mapping[str, Any]]):
        super().__init__(metric=f"metrics/{sweep.metric}", mode=sweep.mode)
        self.sweep, self.as_config, self.past, self.ranges = sweep, config, past, sweep.ranges()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            direction="maximize" if sweep.mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(seed=sweep.seed),
        )
        self.waiting: list[Point] = []  # runs of the last point that have not begun
        self.running: dict[str, int] = {}  # Tune's trial -> number of its point
        self.worth: dict[int, list[float | None]] = {}  # number -> what its runs reached; None: no number

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next run."""
        if not self.waiting:
            number = len(self.study.trials)
            if number in self.past:
                self.study.enqueue_trial({k: _inner(self.ranges[k], v) for k, v in self.past[number].items()})
            trial = self.study.ask({key: _distribution(span) for key, span in self.ranges.items()})
            values = {key: _outer(span, trial.params[key]) for key, span in self.ranges.items()}
            self.waiting = list(seeded(self.sweep, number, values))
        point = self.waiting.pop(0)
        self.running[trial_id] = point.number
        return self.as_config(point)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study what a point was worth, once all of its runs have ended."""
        number = self.running.pop(trial_id)
        reached = self.worth.setdefault(number, [])
        reached.append(None if error or result is None else result.get(self.metric))
        if len(reached) < self.sweep.seeds:
            return
        if None in reached:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, fmean(value for value in reached if value is not None))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a resumed sweep learns from the records of its runs."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


def _distribution(span: Range) -> BaseDistribution:
    if isinstance(span, Choice):
        return CategoricalDistribution(list(range(len(span.values))))  # values may be lists, which Optuna refuses
    if isinstance(span, IntRange):
        return IntDistribution(span.low, span.high)
    return FloatDistribution(span.low, span.high, log=isinstance(span, LogUniform))


def _outer(span: Range, value: Any) -> Any:
    """What Optuna chose, as a run has it."""
    if isinstance(span, Choice):
        return span.values[value]
    return value if isinstance(span, IntRange) else rounded(value, span)


def _inner(span: Range, value: Any) -> Any:
    return span.values.index(value) if isinstance(span, Choice) else value

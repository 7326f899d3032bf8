"""Search with Optuna's tree-structured Parzen estimator.

The estimator (Bergstra et al. 2011) is a search of Ray Tune here, with several seeds for a point. Ray's own
`OptunaSearch` runs a point once; its `Repeater` forgets all results when a sweep is resumed.
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
    """Suggests points from the values of earlier ones.

    The value of a point is the mean of the metric over its seeds.

    Args:
        sweep: the varied keys and the metric.
        config: returns the configuration of the Tune trial of a point.
        begun: values of the points that an earlier start of the sweep has begun, by their number.
    """

    def __init__(self, sweep: Sweep, config: Callable[[Point], dict[str, Any]], begun: Mapping[int, Mapping[str, Any]]):
        super().__init__(metric=f"metrics/{sweep.metric}", mode=sweep.mode)
        self.sweep, self.as_config, self.begun, self.ranges = sweep, config, begun, sweep.ranges()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            direction="maximize" if sweep.mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(seed=sweep.seed),
        )
        self.waiting: list[Point] = []  # runs of the last point that have not started
        self.running: dict[str, int] = {}  # Tune's trial -> number of its point
        self.reached: dict[int, list[float | None]] = {}  # number -> the metric of its runs; None: not measured

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the configuration of the next run."""
        if not self.waiting:
            number = len(self.study.trials)
            if number in self.begun:
                self.study.enqueue_trial({k: _to_optuna(self.ranges[k], v) for k, v in self.begun[number].items()})
            trial = self.study.ask({key: _distribution(span) for key, span in self.ranges.items()})
            values = {key: _from_optuna(span, trial.params[key]) for key, span in self.ranges.items()}
            self.waiting = list(seeded(self.sweep, number, values))
        point = self.waiting.pop(0)
        self.running[trial_id] = point.number
        return self.as_config(point)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report a point's value to the study.

        All of its runs must have ended.
        """
        number = self.running.pop(trial_id)
        reached = self.reached.setdefault(number, [])
        reached.append(None if error or result is None else result.get(self.metric))
        if len(reached) < self.sweep.seeds:
            return
        if None in reached:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, fmean(value for value in reached if value is not None))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing.

        A resumed sweep learns from the records of its runs.
        """

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing (see `save`)."""


def _distribution(span: Range) -> BaseDistribution:
    if isinstance(span, Choice):
        # By index: values may be lists, which Optuna refuses.
        return CategoricalDistribution(list(range(len(span.values))))
    if isinstance(span, IntRange):
        return IntDistribution(span.low, span.high)
    return FloatDistribution(span.low, span.high, log=isinstance(span, LogUniform))


def _from_optuna(span: Range, value: Any) -> Any:
    """Convert Optuna's value to the value in a run."""
    if isinstance(span, Choice):
        return span.values[value]
    return value if isinstance(span, IntRange) else rounded(value, span)


def _to_optuna(span: Range, value: Any) -> Any:
    return span.values.index(value) if isinstance(span, Choice) else value

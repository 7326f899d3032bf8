"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846): the worst take up the weights of the best."""

import random
from typing import Any, Self

from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

from eagleray.config import Sweep
from eagleray.search import Choice, IntRange, LogUniform, Range, rounded


class Population(PopulationBasedTraining):
    """Ray's scheduler, all trials in step with each other: compared at one epoch, and the same on every machine."""

    def within(self, ranges: dict[str, Range]) -> Self:
        """The same, its changes kept in these ranges: Ray multiplies by 0.8 or 1.2 and knows no ends."""
        self.ranges = ranges
        return self

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        """Another's values, changed; all else of a trial's configuration (its directory!) stays its own."""
        config, operations = super()._get_new_config(trial, trial_to_clone)
        values = {key: _clipped(self.ranges[key], value) for key, value in config["trial"]["values"].items()}
        return {"trial": {**trial.config["trial"], "values": values}}, operations

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """As Ray's, except that trials never wait for one that has ended before its turn."""
        chosen = super().choose_trial_to_run(tune_controller)
        states = {trial.status for trial in tune_controller.get_live_trials()}
        if chosen is None and states == {Trial.PAUSED}:
            self._next_perturbation_sync += self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen


def population(sweep: Sweep) -> Population:
    """The scheduler of a sweep: every `grace` epochs the last quarter copies the first and changes what is varied."""
    random.seed(int(sweep.run.get("seed", 0)))  # Ray draws from Python's global generator
    return Population(
        time_attr="epoch",
        perturbation_interval=sweep.grace,
        hyperparam_mutations={"trial": {"values": {key: _domain(span) for key, span in sweep.ranges().items()}}},
        log_config=False,
        require_attrs=False,
        synch=True,
    ).within(sweep.ranges())


def _domain(span: Range) -> Any:
    if isinstance(span, Choice):
        return list(span.values)
    if isinstance(span, IntRange):
        return tune.randint(span.low, span.high + 1)
    return (tune.loguniform if isinstance(span, LogUniform) else tune.uniform)(span.low, span.high)


def _clipped(span: Range, value: Any) -> Any:
    if isinstance(span, Choice):
        return value
    return min(max(value, span.low), span.high) if isinstance(span, IntRange) else rounded(value, span)

"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846): the worst take up the weights of the best."""

import random
from typing import Any

from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

from eagleray.config import Sweep
from eagleray.search import Choice, IntRange, LogUniform, Range, rounded


class Population(PopulationBasedTraining):
    """Ray's scheduler, all trials in step with each other: compared at one epoch, and the same on every machine."""

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
    ranges = sweep.ranges()
    random.seed(int(sweep.run.get("seed", 0)))  # Ray draws from Python's global generator

    def within(config: dict[str, Any]) -> dict[str, Any]:
        # Ray multiplies by 0.8 or 1.2 and knows no ends.
        trial = config["trial"]
        values = {key: _clipped(ranges[key], value) for key, value in trial["values"].items()}
        return {**config, "trial": {**trial, "values": values}}

    return Population(
        time_attr="epoch",
        perturbation_interval=sweep.grace,
        hyperparam_mutations={"trial": {"values": {key: _domain(span) for key, span in ranges.items()}}},
        custom_explore_fn=within,
        log_config=False,
        require_attrs=False,
        synch=True,
    )


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

"""Population based training: the worst trials copy the best.

Jaderberg et al. 2017, arXiv 1711.09846.
"""

from typing import Any, ClassVar

from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from eagleray.config import Sweep
from eagleray.contracts.ranges import Choice, IntRange, LogUniform, Range, rounded
from eagleray.contracts.scheduler import Scheduler
from eagleray.contracts.seeds import seed_python


class Pbt(Scheduler):
    """Let the worst trials copy and vary the best.

    Every `grace` epochs they continue from the weights of the best, with changed settings.
    """

    changes: ClassVar[bool] = True

    def build(self, sweep: Sweep, epochs: int, begun: int) -> TrialScheduler:
        """Return the population's scheduler."""
        return Population(sweep, begun // sweep.grace * sweep.grace)


class Population(PopulationBasedTraining):
    """Ray's scheduler with synchronous trials.

    All are compared at the same epoch, so results are equal on any machine.

    Args:
        sweep: the varied keys; every `grace` epochs the last quarter copies the first and changes its values.
        done: epochs, a multiple of `grace`, that all trials of a resumed sweep have done.
    """

    def __init__(self, sweep: Sweep, done: int):
        self.ranges, self.done = sweep.ranges(), done
        seed_python(sweep.seed)  # Ray draws from Python's global generator
        super().__init__(
            time_attr="epoch",
            perturbation_interval=sweep.grace,
            hyperparam_mutations={"trial": {"values": {key: _domain(span) for key, span in self.ranges.items()}}},
            log_config=False,
            require_attrs=False,
            synch=True,
        )
        self._next_perturbation_sync = done + sweep.grace

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Add a trial that starts from the done epochs.

        The rest is as Ray does it.
        """
        super().on_trial_add(tune_controller, trial)
        self._trial_state[trial].last_perturbation_time = self.done

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        """Copy and change another trial's values.

        The rest of the configuration, such as its directory, stays.
        """
        config, operations = super()._get_new_config(trial, trial_to_clone)
        # Ray multiplies by 0.8 or 1.2 and knows no limits.
        values = {key: _clipped(self.ranges[key], value) for key, value in config["trial"]["values"].items()}
        return {"trial": {**trial.config["trial"], "values": values}}, operations

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Choose the next trial without waiting for ended ones.

        Ray would let trials wait for one that has ended early.
        """
        chosen = super().choose_trial_to_run(tune_controller)
        states = {trial.status for trial in tune_controller.get_live_trials()}
        if chosen is None and states == {Trial.PAUSED}:
            self._next_perturbation_sync += self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen


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

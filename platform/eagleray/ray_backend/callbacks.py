"""Follow the trials of a sweep in Ray Tune.

Their states are shown, and the end of trials that Tune has ended is recorded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial

from eagleray.config.budget import OVER
from eagleray.ray_backend.trial import started
from eagleray.ray_backend.workers import free
from eagleray.runs.record import Record


class Watch(Protocol):
    """An observer of a sweep."""

    def data(self, read: Sequence[str]) -> None:
        """Show what was read: a line for each kind of data."""

    def trial(
        self, label: str, params: Mapping[str, Any], state: str, epoch: int, epochs: int, metrics: Mapping[str, float]
    ) -> None:
        """Show the state of a trial.

        It waits, runs (with its last epoch and metrics), or has ended (as its record says).
        """

    def floor(self, name: str, metrics: Sequence[Mapping[str, float]]) -> None:
        """Show a measured floor: its metrics with each seed."""


class TrialFollower(tune.Callback):
    """Follows the trials of one sweep."""

    def __init__(self, watch: Watch | None):
        self.watch = watch
        self.ended: set[str] = set()  # labels
        self.left: set[str] = set()  # labels of those that the end of the budget has left unfinished

    def __getstate__(self) -> dict[str, Any]:
        return {
            "watch": None,
            "ended": set(),
            "left": set(),
        }  # Tune pickles its callbacks, and a live table cannot be pickled

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Show a running trial, with its share of the machines."""
        self._notify(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Show an epoch that has ended."""
        if not result["done"]:
            self._notify(trial, "running", result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record and show the end of a trial.

        It is done, the scheduler has ended it, or the budget was used up before it could start.
        """
        place = Path(trial.config["trial"]["directory"])
        record = Record.open(place) if (place / "record.json").exists() else None
        if record is None or record.status["message"] == OVER:
            self.left.add(place.name)
            self._notify(trial, "waiting" if record is None else record.state, trial.last_result)
            return
        if record.state == "running":
            record.finish("stopped", "by the scheduler", summary=_metrics(trial.last_result))
        self._end(trial, record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record and show a failed trial.

        Its retries are used up.
        """
        _, record = started(trial.config["trial"])  # it may have failed before it had a record
        free(record.directory)
        error = trial.get_error()
        text = str(getattr(error, "cause", None) or error).strip()
        (record.artifacts / "error.txt").write_text(text, encoding="utf-8")
        # Before the last line are the stack traces of all processes in between.
        record.finish("failed", text.rpartition("\n")[2], summary=_metrics(trial.last_result))
        self._end(trial, record)

    def _end(self, trial: Trial, record: Record) -> None:
        self.ended.add(record.name)
        self._notify(trial, record.state, trial.last_result)

    def _notify(self, trial: Trial, state: str, result: dict[str, Any] | None = None) -> None:
        self.notify(trial.config["trial"], state, result)

    def notify(self, trial: dict[str, Any], state: str, result: dict[str, Any] | None = None) -> None:
        """Show the state of a configuration's trial."""
        if self.watch:
            label, epochs = Path(trial["directory"]).name, trial["run"]["epochs"]
            epoch = (result or {}).get("epoch", 0)
            self.watch.trial(label, trial["varied"], state, epoch, epochs, _metrics(result))


def _metrics(result: dict[str, Any] | None) -> dict[str, float]:
    """Return the loop's metrics from a result of Tune.

    They are empty before the first epoch.
    """
    return (result or {}).get("metrics", {})

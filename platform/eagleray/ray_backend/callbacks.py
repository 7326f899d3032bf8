"""Follow the trials of a sweep in Ray Tune.

Their states are shown, and the end of trials that Tune has ended is recorded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import cloudpickle, tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial

from eagleray.config.budget import OVER
from eagleray.contracts.report import Preempted
from eagleray.ray_backend.failures import failure_of
from eagleray.ray_backend.trial import place_of, started
from eagleray.ray_backend.workers import free
from eagleray.runs.browse import epochs_in_all
from eagleray.runs.failures import ALIKE, failure_in, keep, kills_for_memory
from eagleray.runs.record import Record
from eagleray.storage.copy import of_record
from eagleray.storage.mirror import mirrored, refresh


class Watch(Protocol):
    """An observer of a sweep."""

    def data(self, read: Sequence[str]) -> None:
        """Show what was read: a line for each kind of data."""

    def trial(
        self,
        label: str,
        params: Mapping[str, Any],
        state: str,
        epoch: int,
        epochs: int | None,
        metrics: Mapping[str, float],
    ) -> None:
        """Show the state of a trial.

        It waits, runs (with its last epoch and metrics), or has ended (as its record says). `epochs` is None while they
        are unknown.
        """

    def floor(self, name: str, metrics: Sequence[Mapping[str, float]]) -> None:
        """Show a measured floor: its metrics with each seed."""

    def work(self, what: str, done: int, total: int) -> None:
        """Show how much of some work after the trials is done."""


class FailFast(tune.Stopper):
    """Ends a sweep whose first trials fail at the same place of the code."""

    def __init__(self, follower: "TrialFollower"):
        self.follower = follower

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether to end one trial: never."""
        return False

    def stop_all(self) -> bool:
        """Return whether to end all of them."""
        return self.follower.broken is not None


class TrialFollower(tune.Callback):
    """Follows the trials of one sweep.

    Args:
        watch: shows them.
        count: of the trials.
    """

    def __init__(self, watch: Watch | None, count: int):
        self.watch, self.count = watch, count
        self.reached: dict[str, int] = {}  # epochs, by label
        self.ended: set[str] = set()  # labels
        self.left: set[str] = set()  # labels of those that the end of the budget has left unfinished
        self.replayed: set[str] = set()  # labels of those that had ended before this start
        self.first: list[Record] = []  # those that ended first
        self.kills = kills_for_memory()

    @property
    def broken(self) -> Record | None:
        """One of the first trials, if all of these failed at the same place of the code."""
        failures = [failure_in(record) for record in self.first]
        digests = {failure.digest if failure else "" for failure in failures}
        alike = len(self.first) == min(ALIKE, self.count) and len(digests) == 1 and digests != {""}
        return self.first[0] if alike else None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "watch": None}  # Tune pickles its callbacks, and a live table cannot be pickled

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Show a running trial, with its share of the machines.

        The epochs of one that has ended before are replayed; it is shown already.
        """
        place = place_of(trial.config["trial"])
        if (place / "status.json").exists():
            self.replayed.add(place.name)
        else:
            self._notify(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Show an epoch that has ended.

        If it is one more than before, the trial may fail as often as at its start: Tune counts failures of its whole
        life, of which a long trial on spot machines has many.
        """
        label = place_of(trial.config["trial"]).name
        if result["epoch"] > self.reached.get(label, 0):
            self.reached[label] = result["epoch"]
            trial.run_metadata.num_failures = 0
        if not result["done"] and label not in self.replayed:
            refresh(place_of(trial.config["trial"]), of_record)
            self._notify(trial, "running", result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record and show the end of a trial.

        It is done, the scheduler has ended it, or the budget was used up before it could start.
        """
        place = place_of(trial.config["trial"])
        with mirrored(place, of_record):
            self._complete(trial, place)

    def _complete(self, trial: Trial, place: Path) -> None:
        record = Record.open(place) if (place / "record.json").exists() else None
        if record is None or record.status["message"] == OVER:
            self.left.add(place.name)
            self._notify(trial, "waiting" if record is None else record.state, trial.last_result)
            return
        if record.state == "running":
            record.finish("stopped", "by the scheduler", summary=_metrics(trial.last_result))
        self._end(trial, record)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a failure that would only recur, so that the trial is not tried again.

        A trial that had notice has lost nothing, and may be moved as often as its machines are taken.
        """
        with mirrored(place_of(trial.config["trial"]), of_record):
            self._fail(trial, always=False)
        error = _error_of(trial)
        if isinstance(getattr(error, "cause", error), Preempted):
            trial.run_metadata.num_failures = 0

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record and show a failed trial.

        Its retries are used up.
        """
        place = place_of(trial.config["trial"])
        with mirrored(place, of_record):
            self._fail_for_good(trial, place)

    def _fail_for_good(self, trial: Trial, place: Path) -> None:
        known = (place / "record.json").exists()  # it may have failed before it had one
        record = Record.open(place) if known else started(trial.config["trial"])[1]
        free(record.directory)
        self._fail(trial, always=True)
        self._end(trial, record)

    def _fail(self, trial: Trial, *, always: bool) -> None:
        error = _error_of(trial)
        before, self.kills = self.kills, kills_for_memory()
        failure = failure_of(error, killed=self.kills != before)
        directory = place_of(trial.config["trial"])
        if always or (not failure.is_tried_again and (directory / "record.json").exists()):
            keep(Record.open(directory), failure, str(error))

    def _end(self, trial: Trial, record: Record) -> None:
        if record.name not in self.ended and len(self.first) < ALIKE:
            self.first.append(record)
        self.ended.add(record.name)
        self._notify(trial, record.state, trial.last_result)

    def _notify(self, trial: Trial, state: str, result: dict[str, Any] | None = None) -> None:
        self.notify(trial.config["trial"], state, result)

    def notify(self, trial: dict[str, Any], state: str, result: dict[str, Any] | None = None) -> None:
        """Show the state of a configuration's trial."""
        if self.watch:
            epoch, place = (result or {}).get("epoch", 0), place_of(trial)
            epochs = epochs_in_all(place, trial["run"])
            self.watch.trial(place.name, trial["varied"], state, epoch, epochs, _metrics(result))


def _error_of(trial: Trial) -> BaseException:
    """Return the last error of a trial.

    Tune keeps it in a local folder, and copies it to the trial's own folder later than it calls back.
    """
    if trial.pickled_error_file:
        return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return TuneError(Path(trial.error_file).read_text() if trial.error_file else "the trial left no error")


def _metrics(result: dict[str, Any] | None) -> dict[str, float]:
    """Return the loop's metrics from a result of Tune.

    They are empty before the first epoch.
    """
    return (result or {}).get("metrics", {})

"""Run a trial in Ray Tune, epoch by epoch."""

import json
import platform
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from eagleray.config import Run, changed, read_run
from eagleray.config.budget import OVER
from eagleray.config.metrics import meanings
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import located, shared
from eagleray.contracts.report import Report
from eagleray.loop import train
from eagleray.ray_backend.preemption import NOTICE, listen
from eagleray.ray_backend.signals import here
from eagleray.ray_backend.workers import group
from eagleray.runs.assemble import images_of
from eagleray.runs.checkpoint import checkpoints, run_directory
from eagleray.runs.evaluation import collapsed
from eagleray.runs.hangs import pulsing
from eagleray.runs.notice import Notice
from eagleray.runs.preview import VIEWS, preview
from eagleray.runs.record import PLACES, Record
from eagleray.runs.writer import keep_data, recorded
from eagleray.storage.copy import of_record
from eagleray.storage.mirror import flush, mirrored, refresh

Result = dict[str, Any]
VALUES = "values"  # a tag: what a population has set, as typed; the run file has what validators make of it


def place_of(trial: dict[str, Any]) -> Path:
    """Return the directory of a trial on this machine."""
    return Path(located(trial["directory"]))


class TrialActor(tune.Trainable):
    """An actor that runs trials one after the other.

    Each step is the loop's next epoch. Actors are reused because importing and warming up torch takes seconds. The
    generator does nothing until its first `next`, so neither `setup` nor `reset_config` loads anything that
    `load_checkpoint` would discard again.
    """

    def setup(self, config: dict[str, Any]) -> None:
        listen()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config["trial"])
        return True

    def step(self) -> Result:
        return next(self.results)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Return the path of the loop's own checkpoint.

        So no weights are copied.
        """
        saved = checkpoints(place_of(self.trial))
        return {"checkpoint": shared(saved[-1])} if saved else {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Start from another trial's weights.

        The loop finds its own without help.
        """
        place = Path(located(checkpoint["checkpoint"])) if checkpoint else None
        if place and run_directory(place) != place_of(self.trial):
            refresh(run_directory(place))
            self._begin(self.trial, place)

    def cleanup(self) -> None:
        self.results.close()

    def _begin(self, trial: dict[str, Any], resume_from: Path | None = None) -> None:
        if hasattr(self, "results"):
            self.results.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # other trials may need the memory that the last one leaves
        self.trial, self.results = trial, results(trial, resume_from, NOTICE)


def results(trial: dict[str, Any], resume_from: Path | None = None, notice: Notice | None = None) -> Generator[Result]:
    """Yield a trial's results for Tune, one per epoch.

    Recorded epochs come first, then those of the loop. A resumed sweep runs again from its start, but recorded epochs
    are replayed, not computed. So the scheduler and the search receive again all results that they had.
    """
    with mirrored(place_of(trial)):
        yield from _results(trial, resume_from, notice)


def _results(trial: dict[str, Any], resume_from: Path | None, notice: Notice | None) -> Generator[Result]:
    recorded_epochs = RecordedEpochs.of(place_of(trial))
    if resume_from is None:
        # A population compares only the present state; earlier comparisons have led to its present settings.
        yield from list(recorded_epochs.results())[0 if trial["replay"] else -1 :]
    if recorded_epochs.ended:
        if not recorded_epochs.rows:
            yield result({}, 0, done=True)
        return
    if _is_over(trial):
        if (place_of(trial) / "record.json").exists():
            Record.open(place_of(trial)).finish("stopped", OVER)
        yield result({}, recorded_epochs.epoch, done=True)
        return
    run, record = started(trial)
    if resume_from is not None:
        changes = " ".join(f"{key}={value}" for key, value in trial["values"].items())
        tag = f"changed_after_epoch_{recorded_epochs.epoch}"
        record = record.tag({tag: f"{changes}, from {run_directory(resume_from).name}"})
    torch.set_num_threads(run.threads or 1)
    reported = recorded_epochs.epoch
    changing = {key: value for key, value in trial["values"].items() if isinstance(value, int | float)}
    try:
        with closing(_reports(run, record, trial, resume_from, notice)) as reports:
            for report in reports:
                state, why = _ending(report, trial, run, record)
                if state:
                    record.finish(state, why, summary=report.numbers)
                if report.epoch_ended and (report.done or report.progress.epoch > reported):
                    reported = report.progress.epoch
                    if changing:
                        record.append(report.progress.step, changing, reported)
                    flush(record.directory)
                    yield result(report.numbers, reported, done=report.done or state is not None)
                elif state:
                    yield result({}, reported, done=True)
                if state:
                    return
    except Exception:
        if record.state != "failed":
            raise  # Tune tries it again
        yield result({}, reported, done=True)  # the reason is in the record


def _ending(report: Report, trial: dict[str, Any], run: Run, record: Record) -> tuple[str | None, str]:
    """Return the state in which a trial ends after a report, and why; None: it goes on."""
    if report.done:
        return None, ""
    if report.epoch_ended and trial["stop_collapsed"]:
        loss = run.collapsed_loss
        why = collapsed(record.metrics(), loss, classes=run.labels is not None)
        if why:
            return "collapsed", why
    # Nothing is lost where a checkpoint was saved; a group of workers listens only between epochs.
    if _is_over(trial) and (report.epoch_ended or (report.checkpoint and run.workers == 1)):
        return "stopped", OVER
    return None, ""


def _is_over(trial: dict[str, Any]) -> bool:
    """Return whether the budget of the sweep is used up."""
    return trial["end"] is not None and time.time() >= trial["end"]


def _reports(
    run: Run, record: Record, trial: dict[str, Any], resume_from: Path | None, notice: Notice | None
) -> Generator[Report]:
    if run.workers > 1:
        return group(run, record.directory, cpus=trial["cpus"], gpus=trial["gpus"], notice=notice)
    return recorded(pulsing(_trained(run, record, resume_from, notice), record.directory, node=here()), record)


def _trained(run: Run, record: Record, resume_from: Path | None, notice: Notice | None) -> Iterator[Report]:
    data = images_of(run)
    keep_data(run, record, data)
    if not (record.artifacts / VIEWS).exists():
        preview(run, record.artifacts / VIEWS, data)
    yield from train(run, record.directory, data=data, resume_from=resume_from, notice=notice)


@dataclass(frozen=True)
class RecordedEpochs:
    """The recorded epochs of a trial."""

    rows: list[dict[str, Any]]
    ended: bool

    @classmethod
    def of(cls, directory: Path) -> "RecordedEpochs":
        """Read the record of a trial.

        There are no epochs if it has not started.
        """
        if not (directory / "record.json").exists():
            return cls([], ended=False)
        record = Record.open(directory)
        return cls(record.metrics(), ended=record.has_ended)

    @property
    def epoch(self) -> int:
        """The number of epochs done."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    def results(self) -> Iterator[Result]:
        """Yield the recorded epochs as results for Tune."""
        for left, row in zip(range(len(self.rows) - 1, -1, -1), self.rows, strict=True):
            metrics = {name: value for name, value in row.items() if name not in PLACES}
            yield result(metrics, int(row["epoch"]), done=self.ended and not left)


def result(metrics: dict[str, float], epoch: int, *, done: bool) -> Result:
    """Return a result for Tune.

    Our metrics have their own key (`metrics/knn`), because Tune adds its own numbers.
    """
    return {"metrics": metrics, "epoch": epoch, "done": done}


def started(trial: dict[str, Any]) -> tuple[Run, Record]:
    """Return a trial's run and record, ready to continue.

    The run has the changes of a population.

    Raises:
        ConfigError: this machine does not see the directory of the sweep.
    """
    own, directory = changed(read_run(trial["run"]), trial["values"]), place_of(trial)
    run = changed(own, trial["imposed"])
    refresh(directory.parents[1], of_record)
    if not directory.parents[1].exists():
        raise ConfigError(
            f"{directory.parents[1]} does not exist on {platform.node()}; on a cluster, set run.tracking.runs to a "
            "folder that all machines share"
        )
    record = Record.create(
        directory,
        name=directory.name,
        experiment=run.tracking.experiment,
        params=trial["params"],
        run=own.file(),  # without what the sweep imposes, so that training it again is an ordinary run
        meanings=meanings(run),
        parent=Record.open(directory.parents[1]),
        tags={**trial["tags"], **({VALUES: json.dumps(trial["values"])} if trial["values"] else {})},
        uri=run.tracking.uri,
    )
    return run, record

"""A trial of a sweep, as Ray Tune runs it: the loop, one epoch at a time."""

import platform
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from ray import tune

from eagleray.config import Run, changed, read_run
from eagleray.config.metrics import meanings
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Diverged, Report
from eagleray.loop import train
from eagleray.ray_backend.workers import group
from eagleray.runs.checkpoint import newest_checkpoint, run_directory
from eagleray.runs.evaluation import collapsed
from eagleray.runs.record import PLACES, Record
from eagleray.runs.writer import recorded

Result = dict[str, Any]


class TrialActor(tune.Trainable):
    """One run at a time, in an actor that serves many runs one after the other: a step is the loop's next epoch.

    An actor that has imported torch and warmed it up is worth seconds, so it is kept. The generator does nothing until
    its first `next`, so neither `setup` nor `reset_config` loads anything that `load_checkpoint` would drop again.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config["trial"])
        return True

    def step(self) -> Result:
        return next(self.results)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Points at the loop's own checkpoint: weights are not copied."""
        saved = newest_checkpoint(Path(self.trial["directory"]))
        return {"checkpoint": str(saved)} if saved else {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Takes up another trial's weights; its own the loop finds by itself."""
        place = Path(checkpoint["checkpoint"]) if checkpoint else None
        if place and run_directory(place) != Path(self.trial["directory"]):
            self._begin(self.trial, place)

    def cleanup(self) -> None:
        self.results.close()

    def _begin(self, trial: dict[str, Any], resume_from: Path | None = None) -> None:
        if hasattr(self, "results"):
            self.results.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # a neighbour may need what the last trial left
        self.trial, self.results = trial, results(trial, resume_from)


def results(trial: dict[str, Any], resume_from: Path | None = None) -> Generator[Result]:
    """What a trial reports to Tune after each of its epochs: first those of its record, then those of the loop.

    A resumed sweep is the same sweep run again, except that nothing recorded is computed anew; so the scheduler and
    the search learn again what they knew.
    """
    recorded_epochs = RecordedEpochs.of(Path(trial["directory"]))
    if resume_from is None:
        # A population compares where all are now; what it compared before led to the settings it has.
        yield from list(recorded_epochs.results())[0 if trial["replay"] else -1 :]
    if recorded_epochs.ended:
        return
    run, record = started(trial)
    if resume_from is not None:
        changes = " ".join(f"{key}={value}" for key, value in trial["values"].items())
        tag = f"changed_after_epoch_{recorded_epochs.epoch}"
        record = record.tag({tag: f"{changes}, from {run_directory(resume_from).name}"})
    torch.set_num_threads(run.threads or 1)
    told = recorded_epochs.epoch
    changing = {key: value for key, value in trial["values"].items() if isinstance(value, int | float)}
    try:
        with closing(_reports(run, record, trial, resume_from)) as reports:
            for report in filter(attrgetter("epoch_ended"), reports):
                over = not report.done and trial["stop_collapsed"] and collapsed(report.metrics)
                if over:
                    record.finish("collapsed", summary=report.numbers)
                if report.done or report.progress.epoch > told:
                    told = report.progress.epoch
                    if changing:
                        record.append(report.progress.step, changing, told)
                    yield result(report.numbers, told, done=report.done or over)
                if over:
                    return
    except Diverged:
        yield result({}, told, done=True)  # the record says why


def _reports(run: Run, record: Record, trial: dict[str, Any], resume_from: Path | None) -> Generator[Report]:
    if run.workers > 1:
        return group(run, record.directory, cpus=trial["cpus"], gpus=trial["gpus"])
    return recorded(train(run, record.directory, resume_from=resume_from), record)


@dataclass(frozen=True)
class RecordedEpochs:
    """What the record of a trial holds already."""

    rows: list[dict[str, Any]]
    ended: bool

    @classmethod
    def of(cls, directory: Path) -> "RecordedEpochs":
        """Read the record of a trial; no epochs if it never began."""
        if not (directory / "record.json").exists():
            return cls([], ended=False)
        record = Record.open(directory)
        # A failed run is tried again: a machine may have been at fault.
        return cls(record.metrics(), ended=record.state in ("finished", "stopped", "collapsed"))

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    def results(self) -> Iterator[Result]:
        """Its epochs as Tune was told them."""
        for left, row in zip(range(len(self.rows) - 1, -1, -1), self.rows, strict=True):
            metrics = {name: value for name, value in row.items() if name not in PLACES}
            yield result(metrics, int(row["epoch"]), done=self.ended and not left)


def result(metrics: dict[str, float], epoch: int, *, done: bool) -> Result:
    """What Tune is told: it adds numbers of its own, so ours have a place of theirs (`metrics/knn`)."""
    return {"metrics": metrics, "epoch": epoch, "done": done}


def started(trial: dict[str, Any]) -> tuple[Run, Record]:
    """The run of a trial, with what a population has changed in it, and its record, open for more."""
    run, directory = changed(read_run(trial["run"]), trial["values"]), Path(trial["directory"])
    if not directory.parents[1].exists():
        raise ConfigError(
            f"{directory.parents[1]} is not to be seen on {platform.node()}; on a cluster, set run.tracking.runs to "
            "a folder that all machines share"
        )
    record = Record.create(
        directory,
        name=directory.name,
        experiment=run.tracking.experiment,
        params=trial["params"],
        run=run.file(),
        meanings=meanings(run),
        parent=Record.open(directory.parents[1]),
        tags=trial["tags"],
        uri=run.tracking.uri,
    )
    return run, record

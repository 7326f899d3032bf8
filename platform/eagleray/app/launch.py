"""Start runs and sweeps.

Their directories are chosen here, and their results are kept and sent to MLflow.
"""

import fcntl
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eagleray.config import Run, Sweep, validated
from eagleray.config.metrics import meanings
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import Choice
from eagleray.contracts.report import Report
from eagleray.loop import train
from eagleray.report.analysis import Analysis, analyse, trials_of
from eagleray.report.heatmap import plot_heatmap
from eagleray.report.text import csv_text, finding, markdown, runs_csv
from eagleray.runs.assemble import assemble
from eagleray.runs.checkpoint import newest_checkpoint
from eagleray.runs.export import export
from eagleray.runs.preview import preview
from eagleray.runs.record import Record
from eagleray.runs.restore import recorded_run
from eagleray.runs.writer import recorded
from eagleray.tracking import Sender, store_uri

if TYPE_CHECKING:
    from eagleray.ray_backend.callbacks import Watch

Display = Callable[[Iterator[Report], str], Iterator[Report]]  # reports and the name of the run -> the same reports
NO_PARAMS = ("tracking", "checkpoints", "evaluate", "device", "threads", "precision")  # sections of a run file
MAY_CHANGE = ("trials", "concurrent", "question")  # settings of a sweep that may change when it is resumed


def folder_of(runs: str, experiment: str) -> Path:
    """Return the folder of an experiment's runs."""
    return Path(runs) / re.sub(r"[^\w.-]+", "-", experiment)


def new_directory(folder: Path, *words: str) -> Path:
    """Return a new directory for a run or sweep.

    It is not created yet.
    """
    name = "-".join([time.strftime("%Y%m%d-%H%M%S"), *words])
    names = (f"{name}{number}" for number in ("", *(f"-{again}" for again in range(2, 1000))))
    return next(folder / each for each in names if not (folder / each).exists())


def newest_unfinished(folder: Path) -> Path:
    """Return the directory of the newest interrupted run or sweep.

    Raises:
        ConfigError: there is no such directory.
    """
    for directory in sorted(folder.glob("*/record.json"), reverse=True):
        if Record.open(directory.parent).state in ("running", "stopped"):
            return directory.parent
    raise ConfigError(f"there is nothing unfinished in {folder} to resume; leave --resume out")


def resumable_run(directory: Path, settings: Mapping[str, Any]) -> Run:
    """Return the run that was started in a directory.

    Raises:
        ConfigError: one of the settings differs from the recorded one.
    """
    run = recorded_run(Record.open(directory))
    # Compare resolved values: in them a relative path has become an absolute one.
    now, before = flat(validated(Run, settings).file()), flat(run.file())
    _check_same(directory, {key: now[key] for key in flat(settings) if key in before and key in now}, before)
    return run


def check_same_sweep(sweep: Sweep, directory: Path) -> None:
    """Check that a directory was started with this sweep.

    Raises:
        ConfigError: a setting differs.
    """
    now, before = (
        flat({key: value for key, value in file.items() if key not in MAY_CHANGE})
        for file in (sweep.model_dump(mode="json"), Record.open(directory).file())
    )
    _check_same(directory, {key: now.get(key) for key in {**before, **now}}, before)


def launch_run(run: Run, directory: Path, display: Display, *, address: str | None = None) -> str | None:
    """Train or continue a run, and export its encoder.

    Args:
        run: everything that defines it.
        directory: created if it is missing.
        display: shows the reports and passes them on.
        address: of a Ray cluster, for several workers.

    Returns:
        What could not be sent to MLflow yet; None if everything was.

    Raises:
        ConfigError: a setting does not fit; no directory is left behind.
        Diverged: the loss became NaN or infinite.
    """
    store_uri(run.tracking.uri)
    data = assemble(run).data  # raises every config error before a directory is created
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    with _directory(directory):
        record = Record.create(
            directory,
            name=directory.name,
            experiment=run.tracking.experiment,
            params=params(run),
            run=run.file(),
            meanings=meanings(run),
            uri=run.tracking.uri,
        )
        preview(run, record.artifacts / "views.png", data)
        with Sender(run.tracking.uri) as sender:
            sender.add(record)
            _train(run, record, lambda: train(run, directory, data=data), display, address)
            _keep(run, record)
    return sender.message


def launch_sweep(
    sweep: Sweep, directory: Path, watch: "Watch | None", *, resume: bool, address: str | None
) -> tuple[Analysis, str | None]:
    """Run or continue a sweep, and write its report.

    Returns:
        The analysis, and what could not be sent to MLflow yet (None if everything was).

    Raises:
        ConfigError: a setting does not fit; no directory is left behind.
        KeyboardInterrupt: a person stopped it.
    """
    from eagleray.ray_backend.sweep import sweep as on_ray

    uri = sweep.run.get("tracking", {}).get("uri")
    store_uri(uri)
    with _directory(directory), Sender(uri) as sender:
        try:
            on_ray(sweep, directory, resume=resume, address=address, watch=SenderWatch(watch, directory, sender))
        except KeyboardInterrupt:
            if (directory / "record.json").exists():
                Record.open(directory).finish("stopped", "by a person")
            raise
        parent = Record.open(directory)
        sender.add(parent)
        for child in parent.children():
            if child.kind == "trial":
                _keep(recorded_run(child), child)
        analysis = conclude(sweep, parent)
    return analysis, sender.message


class SenderWatch:
    """Adds a sweep to the sender once it is recorded.

    Everything is passed on to another watch.
    """

    def __init__(self, watch: "Watch | None", directory: Path, sender: Sender):
        self.watch, self.directory, self.sender, self.is_known = watch, directory, sender, False

    def trial(
        self, label: str, params: Mapping[str, Any], state: str, epoch: int, epochs: int, metrics: Mapping[str, float]
    ) -> None:
        """Pass on the state of a trial (see `ray_backend.callbacks.Watch`)."""
        if not self.is_known and (self.directory / "record.json").exists():
            self.sender.add(Record.open(self.directory))
            self.is_known = True
        if self.watch:
            self.watch.trial(label, params, state, epoch, epochs, metrics)

    def floor(self, name: str, metrics: Sequence[Mapping[str, float]]) -> None:
        """Pass on a measured floor (see `ray_backend.callbacks.Watch`)."""
        if self.watch:
            self.watch.floor(name, metrics)


def conclude(sweep: Sweep, parent: Record) -> Analysis:
    """Write a sweep's report, and end its record.

    The report goes into the artifacts of the sweep.
    """
    trials = trials_of(parent, list(sweep.vary))
    binned = [key for key, span in sweep.ranges().items() if not isinstance(span, Choice)]
    analysis = analyse(trials, sweep.vary, sweep.metric, sweep.mode, binned, sweep.metrics)
    has_picture = plot_heatmap(analysis, parent.artifacts / "heatmap.png", sweep.question)
    unfinished = [each for each in trials if each.state != "finished"]
    notes = [f"{each.name} {each.state}{f': {each.message}' if each.message else ''}" for each in unfinished]
    page = markdown(
        analysis,
        name=sweep.name,
        question=sweep.question,
        picture="heatmap.png" if has_picture else None,
        notes=notes,
    )
    (parent.artifacts / "report.md").write_text(page, encoding="utf-8")
    (parent.artifacts / "leaderboard.csv").write_text(csv_text(analysis), encoding="utf-8")
    (parent.artifacts / "runs.csv").write_text(runs_csv(analysis, trials), encoding="utf-8")
    parent = parent.tag({"finding": finding(analysis)})
    best = analysis.winner
    numbers = {} if best is None or best.mean is None else {sweep.metric: best.mean, **best.metrics}
    parent.finish("finished", summary=numbers)
    return analysis


def params(run: Run) -> dict[str, Any]:
    """Return the settings to compare, with dotted keys.

    Unset ones are left out.
    """
    file = {key: value for key, value in run.file().items() if key not in NO_PARAMS}
    return {key: value for key, value in flat(file).items() if value is not None}


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten a tree to dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return leaves


def _check_same(directory: Path, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise ConfigError(
                f"{directory} was started with {key}={before.get(key)}, and now it is {key}={value}; "
                "set the old value, or leave --resume out"
            )


def _train(
    run: Run, record: Record, local: Callable[[], Iterator[Report]], display: Display, address: str | None
) -> None:
    if run.workers > 1:
        from eagleray.ray_backend.workers import train_on_workers

        reports = train_on_workers(run, record.directory, address=address)
    else:
        reports = recorded(local(), record)
    metrics: dict[str, float] = {}
    try:
        for report in display(reports, f"{run.method.title} on {run.data.title}"):
            metrics = report.metrics if report.epoch_ended else metrics
    except KeyboardInterrupt:
        record.finish("stopped", "by a person", summary=metrics)
        raise


def _keep(run: Run, record: Record) -> None:
    """Keep the views' picture, the encoder and the checkpoint's path."""
    if not (record.artifacts / "views.png").exists():
        preview(run, record.artifacts / "views.png")
    saved = newest_checkpoint(record.directory)
    if saved:
        record.tag({"checkpoint": str(saved.absolute())})
    if saved and record.state == "finished":
        export(run, record.directory)


@contextmanager
def _directory(directory: Path) -> Iterator[None]:
    """Lock a directory for this process.

    Delete it if a config error comes before the first metrics.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process trains in {directory}; wait for its end, or stop it") from None
        try:
            yield
        except ConfigError:
            if directory in missing and not any(directory.rglob("metrics.jsonl")):
                shutil.rmtree(directory)
                _remove_empty(missing[1:])
            raise


def _remove_empty(directories: list[Path]) -> None:
    for path in directories:
        if any(path.iterdir()):
            return
        path.rmdir()

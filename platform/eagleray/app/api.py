"""The Python API: `eagleray.train` and `eagleray.sweep`.

They do the work of the command line, by default without printing. Settings are validated before anything slow is
imported.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleray.app.directories import (
    check_extends,
    check_same_sweep,
    folder_of,
    newest_sweep,
    newest_unfinished,
    resumable_run,
)
from eagleray.app.notify import forget
from eagleray.app.ready import check_run, check_sweep
from eagleray.config import Run, Sweep, validated
from eagleray.config.nested import merged
from eagleray.config.run import run_tree
from eagleray.config.search_points import trial_count
from eagleray.config.sweep_file import sweep_tree
from eagleray.contracts.errors import ConfigError
from eagleray.report.analysis import Analysis
from eagleray.report.finding import finding
from eagleray.report.leaderboard import Row
from eagleray.runs.record import Record
from eagleray.storage.mirror import records_at_hand, run_at_hand

if TYPE_CHECKING:
    from rich.console import Console

    from eagleray.runs.export.encoder import ExportedEncoder


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    run: Run
    directory: Path
    metrics: Mapping[str, float]  # the last of each
    unsent: str | None  # what MLflow does not have yet, and why

    def encoder(self) -> "ExportedEncoder":
        """Load the trained encoder.

        Raises:
            ConfigError: the method's features are not the output of an encoder.
        """
        from eagleray.runs.export.encoder import load_encoder

        return load_encoder(self.directory)


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep."""

    directory: Path
    analysis: Analysis
    unsent: str | None  # what MLflow does not have yet, and why

    @property
    def leaderboard(self) -> list[Row]:
        """The points and the floors, the best first."""
        return self.analysis.rows

    @property
    def best(self) -> Row | None:
        """The best point; None if no point measured the metric."""
        return self.analysis.winner

    @property
    def best_run(self) -> Path | None:
        """The directory of a run of the best point."""
        return self.directory / "trials" / self.best.runs[0] if self.best else None

    @property
    def is_unfinished(self) -> bool:
        """Whether the budget was used up before all runs had ended."""
        return Record.open(self.directory).state == "stopped"

    @property
    def finding(self) -> str:
        """What the sweep found, in one sentence."""
        return finding(self.analysis)


def train(
    run: Run | Mapping[str, Any] | Path | str,
    directory: Path | str | None = None,
    *,
    resume: bool = False,
    address: str | None = None,
    console: "Console | None" = None,
) -> RunResult:
    """Train a run and record it.

    Like `eagleray train`, it sends the run to MLflow too.

    Args:
        run: a run, its settings as a run file has them (`{"method": "byol", "epochs": 20}`), or a run file.
        directory: of the record; by default a new one in `tracking.runs`.
        resume: continue the run in `directory`; without one, the newest that was interrupted.
        address: of a Ray cluster to train on.
        console: shows the progress.

    Raises:
        ConfigError: a setting is wrong or does not fit the images; nothing was started.
        Diverged: the loss became NaN or infinite.
    """
    settings = run.file() if isinstance(run, Run) else _tree(run, run_tree)
    run = run if isinstance(run, Run) else validated(Run, settings)
    folder = folder_of(run.tracking.runs, run.tracking.experiment)
    if resume:
        place = _begun(directory, folder)
        run = resumable_run(place, settings, run.tracking.uri).model_copy(update={"notify": run.notify})
    else:
        place = _unused(directory)
    check_run(run, address)
    from eagleray.app.launch import launch_run
    from eagleray.app.terminal import followed

    def display(reports: Any, name: str, data: str) -> Any:
        return followed(reports, name, console, data) if console else reports

    place, unsent = launch_run(run, place, folder, display, address=address)
    return RunResult(run, place, Record.open(place).summary, unsent)


def sweep(
    sweep: Sweep | Mapping[str, Any] | Path | str,
    directory: Path | str | None = None,
    *,
    resume: bool = False,
    extend: bool = False,
    address: str | None = None,
    console: "Console | None" = None,
) -> SweepResult:
    """Run the trials of a sweep and compare them.

    It does the same as `eagleray sweep`.

    Args:
        sweep: a sweep, its settings as a sweep file has them, or a sweep file.
        directory: of the record; by default a new one in `tracking.runs`.
        resume: continue the sweep in `directory`; without one, the newest that was interrupted.
        extend: add the values, seeds or trials that the sweep in `directory` does not have yet; without a directory,
            the newest of that name.
        address: of a Ray cluster to run on.
        console: shows the trials.

    Raises:
        ConfigError: a setting is wrong or does not fit the images; nothing was started.
    """
    asked = sweep if isinstance(sweep, Sweep) else validated(Sweep, _tree(sweep, sweep_tree))
    folder = folder_of(asked.run.get("tracking", {}).get("runs", "runs"), asked.name)
    if extend:
        place = Record.open(run_at_hand(directory)).directory if directory else newest_sweep(folder)
        check_extends(asked, place)
    elif resume:
        place = _begun(directory, folder)
        check_same_sweep(asked, place)
    else:
        place = _unused(directory)
    check_sweep(asked, address)
    if extend and place:
        forget(place)
    from eagleray.app.launch import launch_sweep
    from eagleray.app.live import SweepDisplay

    count = trial_count(asked)
    title = f"{asked.name}: {asked.question}" if asked.question else asked.name
    with SweepDisplay(title, asked.metric, count, console, asked.mode) if console else nullcontext() as watch:
        place, analysis, unsent = launch_sweep(asked, place, folder, watch, resume=resume or extend, address=address)
    return SweepResult(place, analysis, unsent)


def _tree(settings: Mapping[str, Any] | Path | str, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    return merged(settings) if isinstance(settings, Mapping) else read(Path(settings))


def _begun(directory: Path | str | None, folder: Path) -> Path:
    """Return the directory to continue in.

    Raises:
        ConfigError: it has no record, or there is nothing to resume.
    """
    return Record.open(run_at_hand(directory)).directory if directory else newest_unfinished(folder)


def _unused(directory: Path | str | None) -> Path | None:
    """Return the directory of a new run or sweep; None: its name is still to be chosen.

    Raises:
        ConfigError: the directory has a record that would be overwritten.
    """
    place = records_at_hand(directory) if directory else None
    if place and (place / "record.json").exists():
        raise ConfigError(f"{directory} has a run already; name another directory, or set resume=True to continue it")
    return place

"""The Python API: `eagleray.train` and `eagleray.sweep`.

They do the work of the command line, by default without printing. Settings are validated before anything slow is
imported.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleray.config import Run, Sweep, validated
from eagleray.config.nested import merged, read_tree
from eagleray.config.search_points import trial_count
from eagleray.contracts.errors import ConfigError
from eagleray.report.analysis import Analysis, Row
from eagleray.report.text import finding
from eagleray.runs.record import Record

if TYPE_CHECKING:
    from rich.console import Console

    from eagleray.runs.export import ExportedEncoder


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
        from eagleray.runs.export import load_encoder

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
        address: of a Ray cluster, for several workers.
        console: shows the progress.

    Raises:
        ConfigError: a setting is wrong or does not fit the images; nothing was started.
        Diverged: the loss became NaN or infinite.
    """
    settings = run.file() if isinstance(run, Run) else _tree(run)
    run = run if isinstance(run, Run) else validated(Run, settings)
    from eagleray.app.launch import folder_of, launch_run, resumable_run

    folder = folder_of(run.tracking.runs, run.tracking.experiment)
    directory = _place(directory, folder, run.method.title, resume=resume)
    if resume:
        run = resumable_run(directory, settings)
    from eagleray.app.terminal import followed

    def display(reports: Any, name: str) -> Any:
        return followed(reports, name, console) if console else reports

    unsent = launch_run(run, directory, display, address=address)
    return RunResult(run, directory, Record.open(directory).summary, unsent)


def sweep(
    sweep: Sweep | Mapping[str, Any] | Path | str,
    directory: Path | str | None = None,
    *,
    resume: bool = False,
    address: str | None = None,
    console: "Console | None" = None,
) -> SweepResult:
    """Run the trials of a sweep and compare them.

    It does the same as `eagleray sweep`.

    Args:
        sweep: a sweep, its settings as a sweep file has them, or a sweep file.
        directory: of the record; by default a new one in `tracking.runs`.
        resume: continue the sweep in `directory`; without one, the newest that was interrupted.
        address: of a Ray cluster to run on.
        console: shows the trials.

    Raises:
        ConfigError: a setting is wrong or does not fit the images; nothing was started.
    """
    asked = sweep if isinstance(sweep, Sweep) else validated(Sweep, _tree(sweep))
    from eagleray.app.launch import check_same_sweep, folder_of, launch_sweep
    from eagleray.app.terminal import SweepDisplay

    folder = folder_of(asked.run.get("tracking", {}).get("runs", "runs"), asked.name)
    directory = _place(directory, folder, resume=resume)
    if resume:
        check_same_sweep(asked, directory)
    count = trial_count(asked)
    title = f"{asked.name}: {asked.question}" if asked.question else asked.name
    with SweepDisplay(title, asked.metric, count, console) if console else nullcontext() as watch:
        analysis, unsent = launch_sweep(asked, directory, watch, resume=resume, address=address)
    return SweepResult(directory, analysis, unsent)


def _tree(settings: Mapping[str, Any] | Path | str) -> dict[str, Any]:
    return merged(settings) if isinstance(settings, Mapping) else read_tree(Path(settings))


def _place(directory: Path | str | None, folder: Path, *words: str, resume: bool) -> Path:
    """Return the directory of a run or sweep.

    Raises:
        ConfigError: there is nothing to resume, or the directory has a record that would be overwritten.
    """
    from eagleray.app.launch import new_directory, newest_unfinished

    if directory is None:
        return newest_unfinished(folder) if resume else new_directory(folder, *words)
    directory = Path(directory)
    if resume:
        return Record.open(directory).directory
    if (directory / "record.json").exists():
        raise ConfigError(f"{directory} has a run already; name another directory, or set resume=True to continue it")
    return directory

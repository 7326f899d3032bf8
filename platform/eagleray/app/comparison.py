"""Find what the arguments of `compare` name, and analyse it."""

from collections.abc import Iterator
from pathlib import Path

from eagleray.config.metrics import check_goal, headlines, known, mode_of, shipped
from eagleray.config.sections import Tracking
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import located
from eagleray.report.analysis import Analysis, analyse
from eagleray.report.finding import finding
from eagleray.report.recorded import from_directory, from_mlflow
from eagleray.report.trials import Comparison, Group, group_of
from eagleray.runs.browse import browse, directory_of
from eagleray.runs.record import Record
from eagleray.storage.mirror import records_at_hand
from eagleray.tracking import charts_url, page_url, rows, served_at, store_uri, ui_command


def named(name: str, tracking: Tracking) -> Group:
    """Return what a name stands for.

    It is a directory, or an experiment or run in MLflow.

    Raises:
        ConfigError: neither exists.
    """
    path = directory_of(name, tracking.runs)
    if Path(located(name)).is_dir() or (path is not None and (path / "record.json").exists()):
        return in_directory(path or Path(located(name)))
    try:
        return group_of(name, [from_mlflow(row) for row in rows(name, tracking.uri)])
    except ConfigError as error:
        local = f" The directories are here: eagleray compare {path}" if path else ""
        raise ConfigError(f"{error}{local}") from None


def in_directory(path: Path) -> Group:
    """Read the sweep or runs in a directory.

    Of an experiment's folder it is the newest sweep, or the runs if there is none.

    Raises:
        ConfigError: there are none, or one is damaged.
    """
    if (path / "record.json").exists():
        record = Record.open(path)
        family = [record, *record.children()] if record.kind == "sweep" else [record]
        return group_of(str(path), [from_directory(each) for each in family])
    records = browse(path).records
    if not records:
        raise ConfigError(f"{path} holds no runs; name the directory of a sweep, a run or an experiment")
    newest = next((record for record in records if record.kind == "sweep"), None)
    family = [*reversed(records), *(newest.children() if newest else [])]
    return group_of(str(path), [from_directory(each) for each in family])


def newest(runs: str) -> Path:
    """Return the directory of the newest sweep in the folder of all runs.

    Raises:
        ConfigError: there is none.
    """
    sweeps = (record for record in browse(records_at_hand(runs)).records if record.kind == "sweep")
    if found := next(sweeps, None):
        return found.directory
    raise ConfigError(f"there is no sweep in {runs}; name a sweep, an experiment or a directory")


def analysed(comparison: Comparison, metric: str | None = None, mode: str | None = None) -> Analysis:
    """Analyse a comparison by the metric of its sweep, or another.

    Raises:
        ConfigError: no run measured the metric, or it is no goal.
    """
    asked = [(group.metric, group.mode) for group in comparison.groups if group.metric]
    measured = {name for trial in comparison.trials for name in trial.metrics}
    name = metric or next((one for one, _ in asked if one), None) or _headline(measured)
    check_goal(f"--metric {name}", name, known(), measured & set(known()))
    better = mode or next((end for one, end in asked if one == name), None) or mode_of(name, known())
    analysis = analyse(
        comparison.trials, comparison.varied, name, "min" if better == "min" else "max", comparison.binned
    )
    if not analysis.tried:
        raise ConfigError(f"--metric: {finding(analysis)}")
    if better is None:
        raise ConfigError(f"--metric {name} does not declare whether more is better: add --mode max or --mode min")
    return analysis


def _headline(measured: set[str]) -> str:
    """Return the first headline metric that was measured."""
    return next((name for name in headlines(shipped()) if name in measured), "knn")


def links(comparison: Comparison, uri: str | None) -> Iterator[str]:
    """Yield the addresses of MLflow's pages about what was compared, and the command that serves them."""
    pages = {group.name: page for group in comparison.groups if (page := _page(group, uri))}
    for name, page in pages.items():
        yield f"{name} in a browser: {page}"
    if pages and served_at(store_uri(uri)) is None:
        yield f"(`{ui_command(uri)}` serves it)"


def _page(group: Group, uri: str | None) -> str | None:
    shown = group.sweep or next(iter(group.runs))
    if not shown.experiment:
        return page_url(Path(shown.key), uri)  # of a directory: known if it was sent from here
    return charts_url(shown.experiment, shown.tags["eagleray.key"] if group.sweep else None, uri)

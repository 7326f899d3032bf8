"""Commands that look at runs in their directories, without a server."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eagleray.app.line import app, console, say
from eagleray.app.plan import size_of
from eagleray.config import load_run
from eagleray.config.metrics import headlines, meaning_of, ordered, shipped
from eagleray.contracts.errors import ConfigError
from eagleray.runs.browse import browse, directory_of, epochs_done, epochs_in_all
from eagleray.runs.record import CHANGES, Record
from eagleray.storage.mirror import records_at_hand, run_at_hand

if TYPE_CHECKING:
    from eagleray.report.recorded import Recorded

SILENT = 15 * 60  # seconds without a sign of life after which a running run is said to be silent
runs = typer.Typer(help="List runs, show one, or find the best, from their directories.", no_args_is_help=True)
app.add_typer(runs, name="runs")

Folder = Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="of all runs, or of one experiment's")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="its directory, or that below the folder of all runs")]
Place = Annotated[
    str | None, typer.Argument(metavar="[EXPERIMENT|SWEEP]", help="a directory; by default the newest sweep")
]


@runs.command()
def ls(
    folder: Folder = None,
    sweeps: Annotated[bool, typer.Option("--sweeps", help="only sweeps")] = False,
    trials: Annotated[bool, typer.Option("--trials", help="also the trials and floors of sweeps")] = False,
) -> None:
    """List runs and sweeps, the newest first."""
    root = records_at_hand(folder or _root())
    if not root.is_dir():
        raise ConfigError(f"there is no folder {root}; name the one that contains the runs")
    from eagleray.app.terminal import fitted, number

    found = browse(root, trials=trials)
    records = [record for record in found.records if not sweeps or record.kind == "sweep"]
    metrics = [name for name in headlines(shipped()) if any(name in record.summary for record in records)]
    lines = [
        [*_facts(record, root), *(number(record.summary[m]) if m in record.summary else "" for m in metrics)]
        for record in records
    ]
    heads = ["age", "run", "kind", "method", "data", "state", "epochs", *metrics]
    if lines:
        console.print(fitted(heads, lines, console.width, optional=metrics[1:]))
    else:
        say(f"there are no {'sweeps' if sweeps else 'runs'} in {root} yet")
    for directory, why in found.damaged.items():
        say(f"cannot be read: {directory}: {why}")


@runs.command()
def show(name: RunName) -> None:
    """Show a run: what is special in it, its metrics, files."""
    record = Record.open(run_at_hand(directory_of(name, str(_root())) or name))
    from eagleray.app.terminal import fitted, number, table

    status = record.status
    say(f"{record.directory}: {_heading(record)}")
    for key in ("question", "finding"):
        if text := _text_of(record, key):
            say(f"{key}: {text}")
    if CHANGES in record.tags:
        say(f"workers: {record.tags[CHANGES]}")
    if status["message"]:
        say(f"message: {status['message']}")
    if record.kind not in ("sweep", "floor"):
        say("")
        heads, lines = _special(record)
        console.print(fitted(heads, lines, console.width) if lines else "all settings have their defaults")
    if status["summary"]:
        names = ordered(status["summary"], shipped())
        say("")
        lines = [[name, number(status["summary"][name]), meaning_of(name, record.meanings)] for name in names]
        console.print(table(["metric", "value", "meaning"], lines))
    say("")
    for path in sorted(path for path in record.directory.rglob("*") if _is_shown(path, record.directory)):
        say(f"{path}  ({size_of(path.stat().st_size)})")
    if record.kind == "sweep":
        say(f"\nits leaderboard: eagleray compare {record.directory}")


@runs.command()
def best(
    place: Place = None,
    metric: Annotated[
        str | None, typer.Option(help="what decides; by default the metric of the sweep", show_default=False)
    ] = None,
    path: Annotated[bool, typer.Option("--path", help="print nothing but its directory, for scripts")] = False,
) -> None:
    """Find the best run of a sweep or of an experiment.

    Of several seeds of the best point it is the first.
    """
    root = _root()
    directory = directory_of(place, str(root)) if place else records_at_hand(root)
    if directory is None or not directory.is_dir():
        remedy = "`eagleray runs ls` lists the runs" if root.is_dir() else "name the one that contains the runs"
        raise ConfigError(f"there is no directory {place or root}; {remedy}")
    from eagleray.app.comparison import analysed, in_directory
    from eagleray.report.trials import compared

    comparison = compared([in_directory(directory)])
    if comparison.other_task:
        keys = ", ".join(comparison.other_task)
        raise ConfigError(f"the runs in {directory} differ in {keys}, so none is the best: name a sweep, or one folder")
    analysis = analysed(comparison, metric)
    winner = analysis.winner
    assert winner is not None, "`analysed` raises if no run measured the metric"
    by_name = {trial.name: run for trial, run in zip(comparison.trials, comparison.runs, strict=True)}
    chosen = _first([by_name[name] for name in winner.runs])
    if path:
        print(chosen)
        return
    for note in comparison.notes:
        say(f"note: {note}")
    values = " ".join(f"{key}={value}" for key, value in winner.params.items())
    say(f"{chosen}\n{' '.join(filter(None, [winner.name, values]))}: {analysis.metric} {winner.measured}\n")
    say(f"all about it:     eagleray runs show {chosen}")
    say(f"on the test set:  eagleray evaluate {chosen}")
    longer = f"steps={2 * steps}" if (steps := Record.open(Path(chosen)).file().get("steps")) else "epochs=200"
    say(f"train it longer:  eagleray train {chosen}/run.yaml {longer}")
    say(f'in Python:        eagleray.load_encoder("{chosen}")')


def _first(runs: "list[Recorded]") -> str:
    """Return the directory of the finished run with the lowest seed."""
    return min(runs, key=lambda run: (run.state != "finished", run.seed or 0)).key


def _root() -> Path:
    return Path(load_run(None, []).tracking.runs)


def _facts(record: Record, root: Path) -> list[str]:
    name = str(record.directory.relative_to(root)) if record.directory != root else str(root)
    part = {key: str(record.params.get(f"{key}.name", "")) for key in ("method", "data")}
    if record.kind == "floor":
        part["method"] = ""
    return [_age(record.created), name, record.kind, part["method"], part["data"], _state_of(record), _epochs(record)]


def _epochs(record: Record) -> str:
    if record.kind == "floor":
        return ""
    if record.kind == "sweep":
        trials = [child for child in browse(record.directory, trials=True).records if child.kind == "trial"]
        return f"{sum(child.has_ended for child in trials)}/{len(trials)} trials"
    return f"{epochs_done(record) or 0}/{epochs_in_all(record.directory, record.params) or '?'}"


def _state_of(record: Record) -> str:
    """Return its state, and whether a running one is silent.

    A run that was killed could not say so.
    """
    if (state := record.state) != "running":
        return state
    signs = [record.directory / "record.json", *record.directory.glob("metrics.jsonl")]
    signs += record.directory.glob("trials/*/metrics.jsonl")
    silent = time.time() - max(path.stat().st_mtime for path in signs)
    return f"running, silent for {_duration(silent)}" if silent > SILENT else state


def _age(created: int) -> str:
    return _duration(time.time() - created / 1000)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds / length)} {unit}"
    return f"{max(0, int(seconds))} s"


def _heading(record: Record) -> str:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created / 1000))
    what = record.kind if record.kind != "trial" else f"trial {record.title}"
    parts = [what, f"of {record.experiment}", f"begun {began}", _state_of(record), _epochs(record)]
    return ", ".join(filter(None, [f"{parts[0]} {parts[1]}", *parts[2:]]))


def _text_of(record: Record, key: str) -> str:
    return record.tags.get(key) or (str(record.file().get(key, "")) if record.kind == "sweep" else "")


def _special(record: Record) -> tuple[list[str], list[list[str]]]:
    """Return the settings of a run that are not the defaults."""
    from eagleray.config import read_run
    from eagleray.config.settings import unusual
    from eagleray.report.numbers import param_text

    try:
        run = read_run(record.file())
        special = unusual(run)
    except ConfigError as error:  # a plugin that is not here, or a file of another version
        say(f"the defaults are unknown here ({str(error).splitlines()[0]}), so these are all settings")
        return ["setting", "value"], [[key, param_text(value)] for key, value in record.params.items()]
    names = {f"{kind}.name": (getattr(run, kind).name, None) for kind in ("method", "encoder", "data")}
    lines = [[key, _written(value), _written(default)] for key, (value, default) in {**names, **special}.items()]
    return ["setting", "value", "default"], lines


def _written(value: Any) -> str:
    from eagleray.report.numbers import param_text

    return "" if value is None else param_text(value)


def _is_shown(path: Path, directory: Path) -> bool:
    """Return whether a file is one of the run's own, and complete."""
    parts = path.relative_to(directory).parts
    is_internal = parts[0] == "trials" or path.name.endswith("lock") or any(part[0] == "." for part in parts)
    return path.is_file() and not is_internal

"""The command line.

A config error ends it with one sentence and exit code 2, before anything is started. Modules that take seconds to
import are imported inside the commands that need them: `--help`, `check`, `schema` and the lists of names must answer
at once.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from eagleray.app import api
from eagleray.config import Sweep, load_run, load_sweep
from eagleray.config.metrics import check_metric, metric_needs, mode_of, shipped
from eagleray.config.nested import merged, parse_override, read_tree
from eagleray.config.registry import WORDS, Kind, declared, find
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Diverged
from eagleray.runs.signals import as_interrupts

app = typer.Typer(
    help="Find out which self-supervised method, and which settings, give the best representation for your images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()
if not console.is_terminal:
    console = Console(width=160)  # a file or a pipe has no width of its own

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN.yaml] [key=value ...]", help="a run file, and settings that override it"),
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the newest one that was interrupted")]
Address = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="of a Ray cluster to run on")]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="one of them, with all its settings")]


def main() -> None:
    """Run a command; print a config error as one sentence."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # `method=my_lab.fancy` is searched here too, after our own
    as_interrupts()
    try:
        app()
    except ConfigError as error:
        _fail(str(error), 2)


@app.command()
def train(settings: Settings = None, resume: Resume = False, address: Address = None) -> None:
    """Train one method (SimCLR on digits by default)."""
    try:
        result = api.train(_tree(*_split(settings)), resume=resume, address=address, console=console)
    except Diverged as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _interrupted("train", settings)
    from eagleray.app.terminal import metrics_table

    console.print(metrics_table(result.metrics, result.run))
    _farewell({"run": result.directory}, result.run.tracking.uri, result.unsent)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="the question")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    resume: Resume = False,
    address: Address = None,
) -> None:
    """Run the trials of a sweep file and compare them."""
    overrides = _only_settings(settings)
    loaded = load_sweep(file, overrides)
    try:
        result = api.sweep(loaded, resume=resume, address=address, console=console)
    except KeyboardInterrupt:
        _interrupted("sweep", [str(file), *overrides])
    from eagleray.app.terminal import leaderboard
    from eagleray.report.text import on_test_set

    console.print(leaderboard(result.analysis))
    artifacts = result.directory / "artifacts"
    places = {"report": artifacts / "report.md", "heat map": artifacts / "heatmap.png"}
    if result.best_run:
        places["winner"] = result.best_run
    _say(f"{result.finding}\n{on_test_set(result.analysis)}\n")
    _farewell(places, loaded.run.get("tracking", {}).get("uri"), result.unsent)


@app.command()
def evaluate(directory: Annotated[Path, typer.Argument(metavar="RUN", help="the directory of a run")]) -> None:
    """Evaluate a trained run again, from its checkpoint.

    The test set is evaluated too.
    """
    from eagleray.runs.record import Record

    record = Record.open(directory)
    if record.tags.get("kind") == "sweep":
        raise ConfigError(f"{directory} is a sweep; name one of its runs, such as {directory / 'trials'}/…")
    from eagleray.app.terminal import metrics_table
    from eagleray.runs.restore import evaluated, recorded_run

    run = recorded_run(record)
    console.print(metrics_table(evaluated(run, record.directory), run))


@app.command()
def compare(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="a sweep's name, or tracking.experiment")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
    metric: Annotated[str, typer.Option(help="the metric to compare")] = "knn",
    mode: Annotated[
        str | None, typer.Option(help="whether more is better (max) or less (min); by default as the metric declares")
    ] = None,
) -> None:
    """Show the leaderboard of an MLflow experiment.

    Also print the address of MLflow's page that compares its runs.
    """
    if mode not in ("max", "min", None):
        raise ConfigError(f"--mode {mode} is neither max nor min")
    uri = load_run(None, _only_settings(settings)).tracking.uri
    from eagleray.app.terminal import leaderboard
    from eagleray.report.analysis import analyse, trials_of_rows
    from eagleray.report.text import finding
    from eagleray.tracking import compare_url, rows, ui_base

    runs = rows(experiment, uri)
    trials = trials_of_rows(runs)
    varied = list(next((trial.params for trial in trials if not trial.floor), {}))
    better = mode or mode_of(metric, shipped())
    analysis = analyse(trials, varied, metric, "min" if better == "min" else "max")
    if not analysis.tried:
        raise ConfigError(f"--metric: {finding(analysis)}")
    if better is None:
        raise ConfigError(f"--metric {metric} does not declare whether more is better: add --mode max or --mode min")
    console.print(leaderboard(analysis))
    _say(f"\n{finding(analysis)}\n")
    run_ids = [run["run_id"] for run in runs if run["tags"].get("kind") != "sweep"]
    _say(f"compare them: {compare_url(runs[0]['experiment_id'], run_ids[:100], ui_base(uri))}")
    _say("(`eagleray ui` serves that page)")


@app.command()
def methods(name: Name = None) -> None:
    """List the methods, or the settings and recipes of one."""
    from eagleray.report.catalogue import recipes

    _list("method", name)
    for recipe, training in recipes(find("method", name)).items() if name else ():
        _say(f"{recipe}: {training}")


@app.command()
def encoders(name: Name = None) -> None:
    """List the encoders, or the settings of one."""
    _list("encoder", name)


@app.command()
def datasets(name: Name = None) -> None:
    """List the datasets, or the settings of one."""
    _list("data", name)


@app.command()
def evaluators(name: Name = None) -> None:
    """List the evaluators, or explain the metrics of one."""
    from eagleray.app.terminal import table
    from eagleray.report.catalogue import METRICS, metrics

    if name is not None:
        _list("evaluator", name)
        console.print(table(METRICS, metrics(find("evaluator", name).values["metrics"])))
        return
    lines = [[one.name, one.summary, ", ".join(one.values["metrics"])] for one in declared("evaluator").values()]
    console.print(table(["evaluator", "what it is", "metrics"], lines))


@app.command()
def preview(
    settings: Settings = None,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="the file to write")] = Path("views.png"),
) -> None:
    """Draw the views that training would use.

    Each row shows an image: first as it is, then its views.
    """
    run = load_run(*_split(settings))
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the picture is a PNG; use a name that ends in .png")
    from eagleray.runs.preview import preview as draw

    draw(run, out)
    _say(str(out))


@app.command()
def ui(
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 5000,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
) -> None:
    """Serve MLflow's pages about the runs."""
    from eagleray.tracking import ui as serve

    serve(load_run(None, _only_settings(settings)).tracking.uri, host, port)


@app.command()
def sync(
    directory: Annotated[Path, typer.Argument(metavar="[DIRECTORY]", help="the folder of the runs, or one run")] = Path(
        "runs"
    ),
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
) -> None:
    """Send to MLflow what it does not have yet."""
    if not directory.is_dir():
        raise ConfigError(f"there is no directory {directory}; name the one that contains the runs")
    uri = load_run(None, _only_settings(settings)).tracking.uri
    from eagleray.tracking import sync_all

    done = sync_all(directory, uri)
    _say(f"{done.sent} runs sent, {done.already} were complete already, {len(done.unsent)} could not be sent")
    for place, reason in done.unsent.items():
        _say(f"  {place}: {reason}")
    if done.unsent:
        raise typer.Exit(1)


@app.command()
def schema(kind: Annotated[str, typer.Argument(metavar="run|sweep")] = "run") -> None:
    """Print the JSON schema of run or sweep files."""
    from eagleray.config.schema import run_schema, sweep_schema

    schemas = {"run": run_schema, "sweep": sweep_schema}
    if kind not in schemas:
        raise ConfigError(f"there is a schema of run files and one of sweep files, but none of {kind!r}")
    print(json.dumps(schemas[kind](), indent=2))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a run or a sweep file")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
) -> None:
    """Validate a run or sweep file; start nothing."""
    overrides = _only_settings(settings)
    if "vary" in read_tree(file):
        loaded = load_sweep(file, overrides)
        unchecked = _check_labels(loaded)
        _say(f"{file} is a valid sweep: {loaded.search} search over {', '.join(loaded.vary)}{unchecked}")
    else:
        run = load_run(file, overrides)
        _say(f"{file} is a valid run: {run.method.name} with {run.encoder.name} on {run.data.name}")


# --- shared by commands ----------------------------------------------------------------------------------------


def _split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """Separate the run file, if given, from the settings."""
    arguments = arguments or []
    files = [text for text in arguments if "=" not in text or Path(text).is_file()]
    if len(files) > 1:
        raise ConfigError(f"name only one run file, not {len(files)}: {', '.join(files)}")
    if files and not Path(files[0]).is_file():
        raise ConfigError(f"there is no file {files[0]}; settings are written key=value, for example method=simclr")
    return (Path(files[0]) if files else None), [text for text in arguments if text not in files]


def _only_settings(arguments: list[str] | None) -> list[str]:
    for text in arguments or []:
        parse_override(text)  # raises if it is not a setting
    return arguments or []


def _check_labels(sweep: Sweep) -> str:
    """Check that images have the labels a metric needs.

    The images are listed, not read.

    Returns:
        Text for the user: what could not be checked, or nothing.

    Raises:
        ConfigError: the metric needs labels, and the images have none.
    """
    known: dict[str, tuple[bool, bool]] = {}
    for run in sweep.probes():
        if "labels" not in metric_needs(sweep.metric, run):
            continue
        key = json.dumps(run.file()["data"])
        if key not in known:
            source, share = run.data.declaration.load()(run.data.name, run.data.config), run.data.settings.validation
            try:
                known[key] = source.class_names() is not None, share > 0 or "validation" in source.parts()
            except ConfigError as error:
                return f"; whether its images have labels could not be checked here ({error})"
        labels, validation = known[key]
        check_metric(sweep.metric, run, labels=labels, validation=validation)
    return ""


def _tree(file: Path | None, overrides: list[str]) -> Mapping[str, Any]:
    """Merge a file's settings with overrides, without defaults."""
    return merged(read_tree(file) if file else {}, merged(*map(parse_override, overrides)))


def _list(kind: Kind, name: str | None) -> None:
    from eagleray.app.terminal import table
    from eagleray.report.catalogue import SETTINGS, settings

    if name is not None:
        one = find(kind, name)
        _say(f"{one.name}: {one.doc.strip()}\n")
        if lines := settings(one):
            # Only methods have recipes and ranges.
            heads = SETTINGS if kind == "method" else ("setting", "default", "meaning")
            console.print(table(heads, lines if kind == "method" else [[*line[:2], line[-1]] for line in lines]))
            _say("")
        return
    key = kind if kind == "data" else WORDS[kind]
    lines = [
        [one.name, one.summary, ", ".join(f"{key}.{setting}" for setting in one.Config.model_fields)]
        for one in declared(kind).values()
    ]
    console.print(table([WORDS[kind], "what it is", "settings"], lines))


def _farewell(places: Mapping[str, Path], uri: str | None, unsent: str | None) -> None:
    from eagleray.tracking import ui_command

    width = max(map(len, places))
    for name, path in places.items():
        if path.exists():
            _say(f"{name:<{width}}  {path}")
    if unsent:
        _say(unsent)
    _say(f"To compare runs in a browser: {ui_command(uri)}")


def _interrupted(command: str, arguments: list[str] | None) -> NoReturn:
    again = shlex.join(["eagleray", command, *(arguments or []), "--resume"])
    print(f"eagleray: stopped; nothing is lost. To continue: {again}", file=sys.stderr)
    raise typer.Exit(130)


def _say(text: str) -> None:
    """Print plain text without wrapping.

    Paths and addresses can then be copied.
    """
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"eagleray: {sentence}", file=sys.stderr)
    raise SystemExit(code)

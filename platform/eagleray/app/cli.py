"""The command line. Bad input ends in one sentence and exit code 2, before anything is started.

Whatever takes seconds to import is imported inside the command that needs it: `--help`, `check`, `schema` and the
lists of names must answer at once.
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
    console = Console(width=160)  # a file or a pipe has no edge

Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN.yaml] [key=value ...]", help="a run file and settings over it")
]
Resume = Annotated[bool, typer.Option("--resume", help="take up the newest one that was interrupted")]
Address = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="of a Ray cluster to run on")]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="one of them, with all its settings")]


def main() -> None:
    """Runs a command; says in one sentence what is wrong."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # `method=my_lab.fancy` is looked for here too; our own come first
    as_interrupts()
    try:
        app()
    except ConfigError as refusal:
        _fail(str(refusal), 2)


@app.command()
def train(settings: Settings = None, resume: Resume = False, address: Address = None) -> None:
    """Train one method (SimCLR on digits by default)."""
    try:
        result = api.train(_given(*_split(settings)), resume=resume, address=address, console=console)
    except Diverged as diverged:
        _fail(str(diverged), 1)
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
    asked = load_sweep(file, overrides)
    try:
        result = api.sweep(asked, resume=resume, address=address, console=console)
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
    _farewell(places, asked.run.get("tracking", {}).get("uri"), result.unsent)


@app.command()
def evaluate(directory: Annotated[Path, typer.Argument(metavar="RUN", help="the directory of a run")]) -> None:
    """Measure a trained run again, from its checkpoint.

    The test part is measured too.
    """
    from eagleray.runs.record import Record

    record = Record.open(directory)
    if record.tags.get("kind") == "sweep":
        raise ConfigError(f"{directory} is a sweep; take one of its runs, such as {directory / 'trials'}/…")
    from eagleray.app.terminal import metrics_table
    from eagleray.runs.restore import evaluated, recorded_run

    run = recorded_run(record)
    console.print(metrics_table(evaluated(run, record.directory), run))


@app.command()
def compare(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="a sweep's name, or tracking.experiment")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
    metric: Annotated[str, typer.Option(help="what is compared")] = "knn",
    mode: Annotated[
        str | None, typer.Option(help="which end of it is better: max or min; left out: the one that it declares")
    ] = None,
) -> None:
    """Show the leaderboard of an MLflow experiment.

    And say where in MLflow its runs can be compared.
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
    found = analyse(trials, varied, metric, "min" if better == "min" else "max")
    if not found.tried:
        raise ConfigError(f"--metric: {finding(found)}")
    if better is None:
        raise ConfigError(f"--metric {metric} has no better end of its own: add --mode max or --mode min")
    console.print(leaderboard(found))
    _say(f"\n{finding(found)}\n")
    shown = [run["run_id"] for run in runs if run["tags"].get("kind") != "sweep"]
    _say(f"compare them: {compare_url(runs[0]['experiment_id'], shown[:100], ui_base(uri))}")
    _say("(`eagleray ui` serves that page)")


@app.command()
def methods(name: Name = None) -> None:
    """List the methods, or the settings of one, their ranges and its recipes."""
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
    """List the evaluators and their metrics, or what those of one mean."""
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
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="where the picture goes")] = Path("views.png"),
) -> None:
    """Draw the views that training would see.

    A row is an image: first as it is, then as each of its views.
    """
    run = load_run(*_split(settings))
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the picture is a PNG; give it a name that ends in .png")
    from eagleray.runs.preview import preview as draw

    draw(run, out)
    _say(str(out))


@app.command()
def ui(
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the pages")] = 5000,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
) -> None:
    """Serve MLflow's pages on the runs."""
    from eagleray.tracking import ui as serve

    serve(load_run(None, _only_settings(settings)).tracking.uri, host, port)


@app.command()
def sync(
    directory: Annotated[Path, typer.Argument(metavar="[DIRECTORY]", help="runs, or one of them")] = Path("runs"),
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
) -> None:
    """Send to MLflow what it does not have yet."""
    if not directory.is_dir():
        raise ConfigError(f"there is no directory {directory}; name the one that holds the runs")
    uri = load_run(None, _only_settings(settings)).tracking.uri
    from eagleray.tracking import sync_all

    done = sync_all(directory, uri)
    _say(f"{done.sent} runs sent, {done.already} were there already, {len(done.unsent)} could not be sent")
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
        raise ConfigError(f"there is a schema of run and one of sweep files, none of {kind!r}")
    print(json.dumps(schemas[kind](), indent=2))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a run or a sweep file")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
) -> None:
    """Validate a run or sweep file; start nothing."""
    overrides = _only_settings(settings)
    if "vary" in read_tree(file):
        asked = load_sweep(file, overrides)
        unseen = _check_labels(asked)
        _say(f"{file} is a valid sweep: {asked.search} search over {', '.join(asked.vary)}{unseen}")
    else:
        run = load_run(file, overrides)
        _say(f"{file} is a valid run: {run.method.name} with {run.encoder.name} on {run.data.name}")


# --- what commands share ---------------------------------------------------------------------------------------


def _split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """The run file among the arguments, if there is one, and the settings."""
    arguments = arguments or []
    files = [text for text in arguments if "=" not in text or Path(text).is_file()]
    if len(files) > 1:
        raise ConfigError(f"one run file at a time, and here are {len(files)}: {', '.join(files)}")
    if files and not Path(files[0]).is_file():
        raise ConfigError(f"there is no file {files[0]}; settings are written key=value, for example method=simclr")
    return (Path(files[0]) if files else None), [text for text in arguments if text not in files]


def _only_settings(arguments: list[str] | None) -> list[str]:
    for text in arguments or []:
        parse_override(text)  # refuses what is no setting
    return arguments or []


def _check_labels(sweep: Sweep) -> str:
    """Refuse a metric for want of labels; return what cannot be seen here. The images are listed, not read."""
    known: dict[str, tuple[bool, bool]] = {}
    for run in sweep.probes():
        if "labels" not in metric_needs(sweep.metric, run):
            continue
        key = json.dumps(run.file()["data"])
        if key not in known:
            source, share = run.data.declaration.load()(run.data.name, run.data.config), run.data.settings.validation
            try:
                known[key] = source.class_names() is not None, share > 0 or "validation" in source.parts()
            except ConfigError as missing:
                return f"; whether its images have labels cannot be seen here ({missing})"
        labels, validation = known[key]
        check_metric(sweep.metric, run, labels=labels, validation=validation)
    return ""


def _given(file: Path | None, overrides: list[str]) -> Mapping[str, Any]:
    """What was said, without defaults."""
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
    print(f"eagleray: stopped; nothing is lost. To go on: {again}", file=sys.stderr)
    raise typer.Exit(130)


def _say(text: str) -> None:
    """Plain text, never wrapped: paths and addresses are copied from it."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"eagleray: {sentence}", file=sys.stderr)
    raise SystemExit(code)

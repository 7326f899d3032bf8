"""Commands that train and evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from eagleray.app import api
from eagleray.app.line import (
    Address,
    Plain,
    Resume,
    Settings,
    app,
    console,
    fail,
    failed,
    farewell,
    interrupted,
    only_settings,
    output,
    say,
    split,
    to_continue,
)
from eagleray.app.ready import check_sweep
from eagleray.config import Run, Sweep, load_run, load_sweep, read_run
from eagleray.config.metrics import check_protocols, measured_by
from eagleray.config.nested import read_tree
from eagleray.config.places import placed
from eagleray.config.run import run_tree
from eagleray.config.sweep_file import is_sweep
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Failed
from eagleray.runs.browse import open_run
from eagleray.runs.preflight import check_writable
from eagleray.storage.mirror import mirrored

if TYPE_CHECKING:
    from eagleray.data.images import Data


@app.command()
def train(
    settings: Settings = None,
    resume: Resume = False,
    address: Address = None,
    plain: Plain = False,
    profile: Annotated[
        int | None, typer.Option(metavar="STEPS", min=5, help="train so few steps, and say what takes their time")
    ] = None,
) -> None:
    """Train one method (SimCLR on digits by default)."""
    if profile and resume:
        raise ConfigError("--profile starts a run and --resume continues one; leave one of them out")
    if profile:
        file, overrides = split(settings)
        with placed(file, overrides):
            _profile(load_run(file, overrides), profile, address)
        return
    out = output(plain)
    try:
        file, overrides = split(settings)
        with placed(file, overrides):
            result = api.train(run_tree(file, overrides), resume=resume, address=address, console=out)
    except KeyboardInterrupt as stopped:
        interrupted("train", settings, stopped, resumed=resume)
    except Exception as error:
        failed(error)
    from eagleray.app.terminal import metrics_table
    from eagleray.runs.measured import kept

    out.print(metrics_table(result.metrics, result.run, dict(kept(result.directory / "artifacts"))))
    farewell(result.directory, {"run": result.directory}, result.run.tracking.uri, result.unsent)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="the question")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    resume: Resume = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="add new values, seeds or trials to the newest of that name")
    ] = False,
    address: Address = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="say what the sweep would cost, after a probe of each kind of run; start nothing"),
    ] = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="with --plan: measure nothing")] = False,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="with --plan: of a GPU hour, or of an hour of this machine if trials use no GPU"),
    ] = None,
    plain: Plain = False,
) -> None:
    """Run the trials of a sweep file and compare them."""
    overrides = only_settings(settings)
    loaded, out = load_sweep(file, overrides), output(plain)
    if plan:
        with placed(file, overrides):
            _plan(loaded, probing=not no_probe, price=price)
        return
    if no_probe or price is not None:
        raise ConfigError("--no-probe and --price belong to --plan")
    if resume and extend:
        raise ConfigError("--extend continues an interrupted sweep too; leave --resume out")
    run_sweep(loaded, file, overrides, out, resume=resume, extend=extend, address=address)


def run_sweep(
    loaded: Sweep,
    file: Path,
    overrides: list[str],
    out: Console,
    *,
    resume: bool = False,
    extend: bool = False,
    address: str | None = None,
) -> api.SweepResult:
    """Run a sweep and print what came of it."""
    try:
        with placed(file, overrides):
            result = api.sweep(loaded, resume=resume, extend=extend, address=address, console=out)
    except KeyboardInterrupt as stopped:
        interrupted("sweep", [str(file), *overrides], stopped, resumed=resume or extend)
    except Failed as error:
        fail(str(error), 1)
    except Exception as error:
        failed(error)
    from eagleray.app.terminal import hidden, leaderboard
    from eagleray.report.text import on_test_set
    from eagleray.runs.failures import told_of_trials
    from eagleray.runs.record import Record

    artifacts = result.directory / "artifacts"
    out.print(leaderboard(result.analysis, out.width))
    if more := hidden(result.analysis):
        say(f"{more} more points are not shown: {artifacts / 'leaderboard.csv'} has all")
    files = {"report": "report.html", "as text": "report.md", "heat map": "heatmap.png"}
    places = {what: artifacts / file for what, file in files.items()}
    if result.best_run:
        places["winner"] = result.best_run
    say(f"{result.finding}\n{on_test_set(result.analysis)}\n")
    if failures := told_of_trials(Record.open(result.directory)):
        say(f"{failures}\n")
    if result.is_unfinished:
        say(f"The budget is used up. To continue: {to_continue('sweep', [str(file), *overrides])}")
    farewell(result.directory, places, loaded.run.get("tracking", {}).get("uri"), result.unsent)
    return result


@app.command()
def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="the directory of a run")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[evaluate.NAME.KEY=VALUE ...]")] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="an evaluator, also several times; by default those of the run"),
    ] = None,
) -> None:
    """Evaluate a trained run again, from its checkpoint.

    The test set is evaluated too. What is found is kept among the artifacts of the run, and sent to MLflow if the run
    was.
    """
    record = open_run(directory)
    run = measured_by(read_run(record.file()), protocol or (), only_settings(settings))
    from eagleray.app.terminal import found_table, metrics_table
    from eagleray.runs.restore import evaluated
    from eagleray.tracking import Unsent, send_again

    data = _read(run)
    check_protocols(run, labels=data.train.labels is not None, validation=data.validation is not None)
    with mirrored(record.directory):
        found = evaluated(run, record.directory, data)
        found.keep(record.artifacts, beside=True)
        sent = send_again(record)
    console.print(metrics_table(found, run, found.numbers))
    for name, rows in found.tables.items():
        say(f"\n{name}")
        console.print(found_table(rows))
    say("\n".join(["", *found.words, f"kept in {record.artifacts}"]))
    if isinstance(sent, Unsent):
        say(f"not yet in MLflow: {sent.reason}. Nothing is lost; `eagleray sync` sends it.")


@app.command()
def preview(
    settings: Settings = None,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="the file to write")] = Path("views.png"),
) -> None:
    """Draw the views that training would use.

    Each row shows an image with its crops, then its views, those of the first step. For a sweep file, views of the
    values that it varies stand side by side.
    """
    file, overrides = split(settings)
    is_question = file is not None and is_sweep(read_tree(file))
    question = load_sweep(file, overrides) if file and is_question else load_run(file, overrides)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the picture is a PNG; use a name that ends in .png")
    check_writable(out, "--out to another file")
    template = "--out {}; name another file"
    from eagleray.runs.preview import preview as draw
    from eagleray.runs.preview import preview_sweep

    with placed(file, overrides):
        if isinstance(question, Run):
            draw(question, out, _read(question), template)
        elif hidden := preview_sweep(question, out, template):
            say(f"{hidden} more values had no room")
    say(str(out))


def _read(run: Run) -> "Data":
    """Load the images of a run, and say what was read."""
    from eagleray.data.description import described
    from eagleray.runs.assemble import images_of

    data = images_of(run)
    say(f"data: {described(data, run.image_size)}")
    return data


def _plan(sweep: Sweep, *, probing: bool, price: float | None) -> None:
    from eagleray.app.plan import lines, plan

    check_sweep(sweep)
    if probing:
        from eagleray.app.probe import floor_count, gpus, probe

        made = plan(sweep, probe, gpus=gpus(), price=price, floors=floor_count(sweep))
    else:
        made = plan(sweep, None)
    for name, text in lines(made).items():
        say(f"{name:<10} {text}")


def _profile(run: Run, steps: int, address: str | None) -> None:
    from eagleray.app.profile import profile_run
    from eagleray.app.terminal import table

    found, directory = profile_run(run, steps, address=address)
    stages = [[one["name"], f"{1000 * one['seconds']:.1f}", f"{one['share']:.0%}"] for one in found["stages"]]
    console.print(table(["stage", "ms each time", "share of an epoch"], stages))
    operators = [[one["name"], f"{1000 * one['seconds']:.1f}", str(one["calls"])] for one in found["operators"]]
    console.print(table(["operator", "ms a step", "calls"], operators))
    say(f"{found['sentence']}\n\nprofile  {directory / 'artifacts' / 'profile.json'}")

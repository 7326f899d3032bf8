"""Commands that train and evaluate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from eagleray.app import api
from eagleray.app.line import (
    Address,
    Resume,
    Settings,
    app,
    console,
    fail,
    farewell,
    interrupted,
    only_settings,
    say,
    split,
)
from eagleray.config import Run, load_run, load_sweep
from eagleray.config.nested import merged, parse_override, read_tree
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Diverged


@app.command()
def train(
    settings: Settings = None,
    resume: Resume = False,
    address: Address = None,
    profile: Annotated[
        int | None, typer.Option(metavar="STEPS", min=5, help="train so few steps, and say what takes their time")
    ] = None,
) -> None:
    """Train one method (SimCLR on digits by default)."""
    if profile and resume:
        raise ConfigError("--profile starts anew and --resume continues; leave one of them out")
    if profile:
        _profile(load_run(*split(settings)), profile, address)
        return
    try:
        result = api.train(_tree(*split(settings)), resume=resume, address=address, console=console)
    except Diverged as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        interrupted("train", settings)
    from eagleray.app.terminal import metrics_table

    console.print(metrics_table(result.metrics, result.run))
    farewell({"run": result.directory}, result.run.tracking.uri, result.unsent)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="the question")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    resume: Resume = False,
    address: Address = None,
) -> None:
    """Run the trials of a sweep file and compare them."""
    overrides = only_settings(settings)
    loaded = load_sweep(file, overrides)
    try:
        result = api.sweep(loaded, resume=resume, address=address, console=console)
    except KeyboardInterrupt:
        interrupted("sweep", [str(file), *overrides])
    from eagleray.app.terminal import leaderboard
    from eagleray.report.text import on_test_set

    console.print(leaderboard(result.analysis))
    artifacts = result.directory / "artifacts"
    places = {"report": artifacts / "report.md", "heat map": artifacts / "heatmap.png"}
    if result.best_run:
        places["winner"] = result.best_run
    say(f"{result.finding}\n{on_test_set(result.analysis)}\n")
    farewell(places, loaded.run.get("tracking", {}).get("uri"), result.unsent)


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
def preview(
    settings: Settings = None,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="the file to write")] = Path("views.png"),
) -> None:
    """Draw the views that training would use.

    Each row shows an image: first as it is, then its views.
    """
    run = load_run(*split(settings))
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the picture is a PNG; use a name that ends in .png")
    from eagleray.runs.preview import preview as draw

    draw(run, out)
    say(str(out))


def _profile(run: Run, steps: int, address: str | None) -> None:
    from eagleray.app.profile import profile_run
    from eagleray.app.terminal import table

    found, directory = profile_run(run, steps, address=address)
    stages = [[one["name"], f"{1000 * one['seconds']:.1f}", f"{one['share']:.0%}"] for one in found["stages"]]
    console.print(table(["stage", "ms each time", "share of an epoch"], stages))
    operators = [[one["name"], f"{1000 * one['seconds']:.1f}", str(one["calls"])] for one in found["operators"]]
    console.print(table(["operator", "ms a step", "calls"], operators))
    say(f"{found['sentence']}\n\nprofile  {directory / 'artifacts' / 'profile.json'}")


def _tree(file: Path | None, overrides: list[str]) -> Mapping[str, Any]:
    """Merge a file's settings with overrides, without defaults."""
    return merged(read_tree(file) if file else {}, merged(*map(parse_override, overrides)))

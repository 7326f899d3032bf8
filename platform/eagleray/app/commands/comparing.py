"""Commands that compare runs, in a terminal or with MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from eagleray.app.line import app, console, only_settings, say
from eagleray.config import load_run
from eagleray.config.metrics import check_goal, known, mode_of
from eagleray.contracts.errors import ConfigError


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
    uri = load_run(None, only_settings(settings)).tracking.uri
    from eagleray.app.terminal import leaderboard
    from eagleray.report.analysis import analyse, trials_of_rows
    from eagleray.report.finding import finding
    from eagleray.tracking import compare_url, rows, ui_base

    runs = rows(experiment, uri)
    trials = trials_of_rows(runs)
    varied = list(next((trial.params for trial in trials if not trial.floor), {}))
    measured = {name for trial in trials for name in trial.metrics}
    check_goal(f"--metric {metric}", metric, known(), measured & set(known()))
    better = mode or mode_of(metric, known())
    analysis = analyse(trials, varied, metric, "min" if better == "min" else "max")
    if not analysis.tried:
        raise ConfigError(f"--metric: {finding(analysis)}")
    if better is None:
        raise ConfigError(f"--metric {metric} does not declare whether more is better: add --mode max or --mode min")
    console.print(leaderboard(analysis))
    say(f"\n{finding(analysis)}\n")
    run_ids = [run["run_id"] for run in runs if run["tags"].get("kind") != "sweep"]
    say(f"compare them: {compare_url(runs[0]['experiment_id'], run_ids[:100], ui_base(uri))}")
    say("(`eagleray ui` serves that page)")


@app.command()
def ui(
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 5000,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
) -> None:
    """Serve MLflow's pages about the runs."""
    from eagleray.tracking import ui as serve

    serve(load_run(None, only_settings(settings)).tracking.uri, host, port)


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
    uri = load_run(None, only_settings(settings)).tracking.uri
    from eagleray.tracking import sync_all

    done = sync_all(directory, uri)
    say(f"{done.sent} runs sent, {done.already} were complete already, {len(done.unsent)} could not be sent")
    for place, reason in done.unsent.items():
        say(f"  {place}: {reason}")
    if done.unsent:
        raise typer.Exit(1)

"""Commands that compare runs, in a terminal or with MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from eagleray.app.line import app, console, say, split_names, tracking_of
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import write
from eagleray.contracts.paths import address_of
from eagleray.runs.record import find_records
from eagleray.storage.mirror import records_at_hand, run_at_hand, send_unsent


@app.command()
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME ...] [tracking.uri=...]",
            help="an experiment (its newest sweep), a sweep's or run's name in MLflow, its ID, or a directory; "
            "by default the newest sweep here",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="the metric to compare; by default the sweep's", show_default=False)
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="whether more is better (max) or less (min); by default as the metric declares")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="show the best points only; 0: all")] = 20,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write every run with all settings and metrics as CSV")
    ] = None,
) -> None:
    """Compare the runs of a sweep, or several side by side.

    A name without a directory is looked up in MLflow, whose page that compares the runs is printed too.
    """
    if mode not in ("max", "min", None):
        raise ConfigError(f"--mode {mode} is neither max nor min")
    names, settings = split_names(names or [])
    tracking = tracking_of(settings)
    from eagleray.app.comparison import analysed, links, named, newest
    from eagleray.app.terminal import hidden, leaderboard
    from eagleray.report.sides import conclusions
    from eagleray.report.trials import compared, everything_csv

    names = names or [str(newest(tracking.runs))]
    comparison = compared([named(name, tracking) for name in names])
    if not comparison.trials:
        raise ConfigError(f"{' and '.join(names)}: there are no runs to compare")
    if csv is not None:
        write(csv, everything_csv(comparison), "--csv {}; name another file")
    analysis = analysed(comparison, metric, mode)
    for note in comparison.notes:
        say(f"note: {note}")
    console.print(leaderboard(analysis, console.width, ranked=not comparison.obstacle, top=top or None))
    if more := hidden(analysis, top or None):
        say(f"{more} more points are not shown: --top 0 shows all")
    for sentence in ("", *conclusions(comparison, analysis)):
        say(sentence)
    say(f"\nall of it: {csv}" if csv else "\n(--csv FILE writes every run with all settings and metrics)")
    for link in links(comparison, tracking.uri):
        say(link)


@app.command()
def ui(
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 5000,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="with --host: let everyone in who reaches this machine")
    ] = False,
) -> None:
    """Serve MLflow's pages about the runs.

    Other machines than this need a password: MLFLOW_AUTH_ADMIN_PASSWORD, or --insecure.
    """
    from eagleray.tracking import ui as serve

    serve(tracking_of(settings).uri, host, port, insecure=insecure)


@app.command()
def sync(
    directory: Annotated[Path, typer.Argument(metavar="[DIRECTORY]", help="the folder of the runs, or one run")] = Path(
        "runs"
    ),
    settings: Annotated[list[str] | None, typer.Argument(metavar="[tracking.uri=...]")] = None,
) -> None:
    """Send to MLflow what it does not have yet."""
    directory = records_at_hand(directory)
    send_unsent(directory)
    for record in find_records(directory) if address_of(directory) else ():
        run_at_hand(record.directory)  # MLflow gets pictures and encoders, too
    if not directory.is_dir():
        raise ConfigError(f"there is no directory {directory}; name the one that contains the runs")
    uri = tracking_of(settings).uri
    from eagleray.tracking import sync_all

    done = sync_all(directory, uri)
    say(f"{done.sent} runs sent, {done.already} were complete already, {len(done.unsent)} could not be sent")
    for lack in done.lacks:
        say(lack)
    for place, reason in done.unsent.items():
        say(f"  {place}: {reason}")
    if done.unsent:
        raise typer.Exit(1)

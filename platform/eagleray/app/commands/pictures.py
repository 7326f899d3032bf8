"""The command that draws pictures of a run or a sweep."""

from pathlib import Path
from typing import Annotated

import typer

from eagleray.app.line import app, say
from eagleray.pictures.catalogue import chosen, names
from eagleray.runs.record import Record
from eagleray.storage.mirror import run_at_hand

NAMES = f"of runs: {', '.join(names('run'))}; of sweeps: {', '.join(names('sweep'))}"


@app.command()
def pictures(
    directory: Annotated[Path, typer.Argument(metavar="RUN|SWEEP", help="the directory of a run, or of a sweep")],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME,...", help=f"the pictures to draw, by default all; {NAMES}")
    ] = None,
    images: Annotated[int, typer.Option(min=2, max=5000, help="of a run, encoded for them, at most")] = 2000,
) -> None:
    """Draw pictures by which a person checks a run or a sweep.

    They go into its artifacts, with a page that shows them all and says what can be seen in each, and to MLflow.
    """
    record = Record.open(run_at_hand(directory))
    kind = "sweep" if record.kind == "sweep" else "run"
    wanted = chosen(only or (), kind)
    from eagleray.app.picturing import pictured

    for name, result in pictured(record, kind, wanted, images):
        say(f"{name:<16}{result}")

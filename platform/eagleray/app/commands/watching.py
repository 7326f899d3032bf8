"""Look at what another process does."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from eagleray.app.line import Plain, app, output, say


@app.command()
def watch(
    name: Annotated[str, typer.Argument(metavar="NAME|DIRECTORY", help="a sweep's name, an experiment, a directory")],
    plain: Plain = False,
) -> None:
    """Show a run or sweep that another process trains, until it ends.

    Only its directory is read, so Ctrl-C ends no more than the watching.
    """
    from eagleray.app.watch import find, follow

    out, record = output(plain), find(name, Path("runs"))
    try:
        record = follow(record, out)
    except KeyboardInterrupt:
        print(f"eagleray: no longer watched, but {record.directory} trains on", file=sys.stderr)
        raise typer.Exit(130) from None
    end = record.status
    said = f"{end['state']} {end['message']}" if end["time"] else "its process is gone; --resume continues it"
    say(f"{record.directory}: {said.strip()}")
    out.print(record.tags.get("finding", ""), soft_wrap=not out.is_terminal, highlight=False, markup=False)

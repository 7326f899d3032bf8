"""Commands that help: pages to read offline, and a look at this machine."""

from pathlib import Path
from typing import Annotated

import typer

from eagleray.app.line import app, console, say


@app.command()
def docs(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="a page, a method, an evaluator or a metric")
    ] = None,
) -> None:
    """Show the documentation, offline."""
    from eagleray.app.pages import page, pages, title

    if name is None:
        for name, file in pages().items():  # no table: it would cut the files' long names
            say(f"{name:<13}  {title(file)}\n{'':13}  {file}")
        return
    file, text = page(name)
    if not console.is_terminal:
        print(text)
        return
    from rich.markdown import Markdown

    console.print(Markdown(text))
    say(f"\n{file}")


@app.command()
def doctor() -> None:
    """Look at this machine: versions, GPU, memory, ports.

    The exit code is 1 if a line says what to do.
    """
    from eagleray.app.doctor import findings

    well = True
    for each in findings(Path("runs")):
        say(f"{'warn' if each.remedy else 'ok  '}  {each.what:<13}  {each.found}")
        if each.remedy:
            say(f"{'':21}-> {each.remedy}")
        well = well and not each.remedy
    if not well:
        raise typer.Exit(1)

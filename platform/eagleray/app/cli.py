"""The command line.

A config error ends it with one sentence and exit code 2, before anything is started. Modules that take seconds to
import are imported inside the commands that need them: `--help`, `check`, `schema` and the lists of names must answer
at once.
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from eagleray.app.line import app, fail
from eagleray.contracts.errors import ConfigError, Skipped
from eagleray.runs.environment import version_of
from eagleray.runs.signals import as_interrupts

COMMANDS = ("trying", "training", "watching", "comparing", "runs", "encoder", "plugin", "listing", "help")
for name in COMMANDS:  # in the order of --help
    import_module(f"eagleray.app.commands.{name}")


def _version(asked: bool) -> None:
    if asked:
        print(f"eagleray {version_of('eagleray')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Find out which self-supervised method, and which settings, give the best representation for your images."""


def _note(
    others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any, **more: Any
) -> None:
    """Show what is left out in one sentence, and other warnings as ever."""
    if issubclass(category, Skipped):
        print(f"note: {message}", file=sys.stderr)
    else:
        others(message, category, *place, **more)


def main() -> None:
    """Run a command; print a config error as one sentence."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # `method=my_lab.fancy` is searched here too, after our own
    as_interrupts()
    warnings.showwarning = partial(_note, warnings.showwarning)
    try:
        app()
    except ConfigError as error:
        fail(str(error), 2)

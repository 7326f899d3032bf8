"""The command line.

A config error ends it with one sentence and exit code 2, before anything is started. Modules that take seconds to
import are imported inside the commands that need them: `--help`, `check`, `schema` and the lists of names must answer
at once.
"""

import errno
import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Annotated, Any, cast

import typer

from eagleray.app.line import app, fail
from eagleray.config import Run, Sweep, source
from eagleray.contracts.errors import ConfigError, Noted
from eagleray.contracts.paths import named
from eagleray.contracts.report import Failed
from eagleray.contracts.visible import visible
from eagleray.runs.environment import version_of
from eagleray.runs.signals import as_interrupts

COMMANDS = (
    "trying",
    "training",
    "jobs",
    "watching",
    "comparing",
    "runs",
    "pictures",
    "encoder",
    "plugin",
    "listing",
    "help",
)
# Phrases in typer's errors that do not continue a sentence.
PHRASES = {"Input should be": "it must be", "Value error, ": "", ". Did you mean ": "; did you mean "}
REMEDIES = {  # errors of a path that somebody has typed
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "it is a link that leads to itself; name another",
}
UsageError = cast(type[Exception], typer.BadParameter.__base__)  # of the click inside typer, which does not export it
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
    """Show a note in one sentence, and other warnings as ever."""
    if issubclass(category, Noted):
        print(f"note: {visible(named(str(message)))}", file=sys.stderr)
    else:
        others(message, category, *place, **more)


def _announce_plugins() -> None:
    """Say in one line whenever code of a user's own file is run."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    source.LOG.handlers = [handler]
    source.LOG.setLevel(logging.INFO)


def main() -> None:
    """Run a command; print a config error as one sentence."""
    as_interrupts()
    warnings.showwarning = partial(_note, warnings.showwarning)
    _announce_plugins()
    try:
        raise SystemExit(app(prog_name="eagleray", standalone_mode=False))
    except ConfigError as error:
        fail(str(error), 2)
    except Failed as error:
        fail(str(error), 1)
    except UsageError as error:
        fail(_misused(error), 2)
    except OSError as error:
        if error.filename is None or error.errno not in REMEDIES:
            raise
        fail(f"{error.filename} cannot be used ({error.strerror}): {REMEDIES[error.errno]}", 2)


def _misused(error: Any) -> str:
    """Return what is wrong with a command line, as one sentence.

    A group without a command is answered with its help.
    """
    message, name = error.format_message(), getattr(error, "option_name", "").lstrip("-")
    if "\n" in message:
        return message
    for theirs, ours in PHRASES.items():
        message = message.replace(theirs, ours)
    if name.partition(".")[0] in {**Run.model_fields, **Sweep.model_fields}:
        return f"there is no option --{name}: settings are written without dashes, {name}=VALUE"
    help_ = f"{error.ctx.command_path if error.ctx else 'eagleray'} --help"
    return f"{message[:1].lower()}{message[1:].rstrip('.')} (see `{help_}`)"

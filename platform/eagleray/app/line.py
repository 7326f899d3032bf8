"""What the commands share: the app, arguments, output."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from eagleray.config import load_run
from eagleray.config.nested import parse_override
from eagleray.config.sections import Tracking
from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import named
from eagleray.contracts.report import Stopped
from eagleray.contracts.visible import stripped, visible
from eagleray.runs.record import Record

app = typer.Typer(
    help="Find out which self-supervised method, and which settings, give the best representation for your images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Printed(Console):
    """A console that shows text from elsewhere without obeying it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # Nothing takes their place: tables have measured the text already.
            yield segment if segment.control else segment._replace(text=stripped(segment.text))


terminal, logs = Printed(), Printed(force_terminal=False, width=160)  # a file or a pipe has no width of its own
console = terminal if terminal.is_terminal and not terminal.is_dumb_terminal else logs

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN.yaml] [key=value ...]", help="a run file, and settings that override it"),
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the newest one that was interrupted")]
Plain = Annotated[bool, typer.Option("--plain", help="a line for each event, for logs; else only without a terminal")]
Address = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="of a Ray cluster to run on")]


def output(plain: bool) -> Console:
    """Return the console to print to."""
    return logs if plain else console


def split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """Separate the run file, if given, from the settings.

    Raises:
        ConfigError: there is no such file, or it is the damaged one of a run.
    """
    arguments = arguments or []
    files = [text for text in arguments if "=" not in text or os.path.isfile(text)]  # false for a name that is too long
    if absent := [name for name in files if not os.path.isfile(name)]:
        if os.path.isdir(absent[0]):
            raise ConfigError(f"{absent[0]} is a folder, not a run file; images: data=folder data.root={absent[0]}")
        raise ConfigError(
            f"there is no file {absent[0]}; settings are written key=value, {_example(arguments, absent)}"
        )
    if len(files) > 1:
        raise ConfigError(f"name only one run file, not {len(files)}: {', '.join(files)}")
    for file in map(Path, files):
        if file.name == "run.yaml" and (file.parent / "record.json").exists():
            Record.open(file.parent).file()  # refuses it if it is damaged: with its end its settings would be lost
    return (Path(files[0]) if files else None), [text for text in arguments if text not in files]


def _example(arguments: list[str], absent: list[str]) -> str:
    """Return what was probably meant by `key = value`."""
    _, *after = arguments[arguments.index(absent[0]) :]
    value = next(filter(None, (text.strip("=:") for text in after[:2])), None)
    return f"without spaces: {absent[0].rstrip(':')}={value}" if value else "for example method=simclr"


def split_names(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate names and directories from settings."""
    names = list(dict.fromkeys(text for text in arguments if "=" not in text or os.path.exists(text)))
    return names, only_settings([text for text in arguments if text not in names])


def only_settings(arguments: list[str] | None) -> list[str]:
    for text in arguments or []:
        parse_override(text)  # raises if it is not a setting
    return arguments or []


def tracking_of(arguments: list[str] | None) -> Tracking:
    """Return where runs are kept and sent, as settings say.

    Raises:
        ConfigError: one of them is about something else, or names no store.
    """
    for text in only_settings(arguments):
        if not text.startswith("tracking."):
            raise ConfigError(
                f"{text} has no effect on this command; it takes tracking.uri=URI and tracking.runs=FOLDER"
            )
    from eagleray.tracking import store_uri

    tracking = load_run(None, arguments or []).tracking
    if tracking.uri is not None:
        store_uri(tracking.uri)
    return tracking


def farewell(directory: Path, places: Mapping[str, Path], uri: str | None, unsent: str | None) -> None:
    """Print where the results of a run or sweep are."""
    from eagleray.tracking import page_url, served_at, store_uri, ui_command

    width = max(map(len, places))
    for name, path in places.items():
        if path.exists():
            say(f"{name:<{width}}  {path}")
    if unsent:
        say(unsent)
    page = page_url(directory, uri)
    serve = "" if page and served_at(store_uri(uri)) else ui_command(uri)
    say(f"To compare runs in a browser: {', which serves '.join(filter(None, (serve, page)))}")


def interrupted(
    command: str, arguments: list[str] | None, stopped: KeyboardInterrupt, *, resumed: bool = False
) -> NoReturn:
    """End with what a person's Ctrl-C leaves: `resumed` says whether there was something before."""
    told = str(stopped) or "nothing was recorded yet"
    if isinstance(stopped, Stopped) or (resumed and not str(stopped)):
        told = f"nothing is lost. To continue: {to_continue(command, arguments)}"
    print(f"eagleray: stopped; {visible(told)}", file=sys.stderr)
    raise typer.Exit(130)


def to_continue(command: str, arguments: list[str] | None) -> str:
    """Return the command that resumes, without secrets: an address to notify may be one, others may hold a password."""
    shown = ["notify=..." if text.startswith("notify=") else without_password(text) for text in arguments or []]
    return shlex.join(["eagleray", command, *shown, "--resume"])


def failed(error: Exception) -> NoReturn:
    """End with what a person is told of a failure (runs/failures.py); the traceback is in the log."""
    if isinstance(error, ConfigError) or not hasattr(error, "__notes__"):
        raise error
    fail(error.__notes__[-1], 1)


def say(text: str) -> None:
    """Print plain text without wrapping.

    Paths and addresses can then be copied.
    """
    console.print(named(text), soft_wrap=True, highlight=False, markup=False)


def fail(sentence: str, code: int) -> NoReturn:
    """Print why a command ends, without the middle of endless lines; what it quotes may hold a password."""
    lines = visible(without_password(named(sentence))).split("\n")
    short = "\n".join(f"{line[:2000]} … {line[-1000:]}" if len(line) > 3000 else line for line in lines)
    print(f"eagleray: {short}", file=sys.stderr)
    raise SystemExit(code)

"""Tell people what became of a run or a sweep: a command, or a message to a web address, once for each event."""

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.request import Request, urlopen

from eagleray.config import Run, Sweep
from eagleray.config.told import is_command
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import write
from eagleray.contracts.report import Failed
from eagleray.runs.record import Record

Event = Literal["finished", "failed", "stopped", "collapsed", "budget"]
TOLD = "notified.json"  # in its directory: the events that were told, so that resuming does not repeat them
PATIENCE = 30  # seconds for the address to answer, or the command to end


def notify(one: Run | Sweep, directory: Path, event: Event, text: str) -> None:
    """Tell of an event, unless it was told before.

    A command gets EAGLERAY_EVENT, EAGLERAY_NAME, EAGLERAY_TEXT and EAGLERAY_DIRECTORY; an address gets the same as
    JSON. What cannot be told is logged, and tried again by the next start. The address may hold a secret, so it is
    never logged.
    """
    told = _told(directory)
    if one.notify is None or event in told:
        return
    name = one.name if isinstance(one, Sweep) else directory.name
    text = f"{name} {text}"
    facts = {"event": event, "name": name, "text": text, "directory": str(directory)}
    try:
        (_run if is_command(one.notify) else _post)(one.notify, facts)
    except (OSError, HTTPException, subprocess.SubprocessError, ValueError) as error:
        logging.getLogger(__name__).warning("nobody could be notified that %s: %s", text, _reason(error))
    else:
        write(directory / TOLD, json.dumps([*told, event]))


@contextmanager
def notified(one: Run | Sweep, directory: Path) -> Iterator[None]:
    """Tell if a person stops what is inside, or if it fails."""
    try:
        yield
    except KeyboardInterrupt:
        if (directory / "record.json").exists():
            if Record.open(directory).state == "finished":
                notify(one, directory, "finished", "finished, and was stopped before its encoder was kept")
            else:
                notify(one, directory, "stopped", "was stopped; --resume continues it")
        raise
    except ConfigError:
        raise
    except Exception as error:
        notify(one, directory, "failed", f"failed: {error if isinstance(error, Failed) else type(error).__name__}")
        raise


def forget(directory: Path) -> None:
    """Forget the events of a sweep that is extended: they will happen again."""
    (directory / TOLD).unlink(missing_ok=True)


def _told(directory: Path) -> list[str]:
    file = directory / TOLD
    return json.loads(file.read_text()) if file.exists() else []


def _post(address: str, facts: dict[str, str]) -> None:
    request = Request(address, json.dumps(facts).encode(), {"Content-Type": "application/json"}, method="POST")
    with urlopen(request, timeout=PATIENCE):
        pass


def _run(command: str, facts: dict[str, str]) -> None:
    own = {f"EAGLERAY_{name.upper()}": value for name, value in facts.items()}
    subprocess.run(command, shell=True, check=True, timeout=PATIENCE, env={**os.environ, **own})


def _reason(error: Exception) -> str:
    """Return why, without the address or the command: they may hold a secret."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"the command ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the command took more than {PATIENCE} seconds"
    return str(getattr(error, "reason", None) or error.__class__.__name__)

"""Who is told of a run's or a sweep's end: a setting that may hold a secret, so it is kept nowhere."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from eagleray.config.mistakes import wrong


def is_command(target: Any) -> bool:
    """Return whether a target is a command, not an address."""
    return isinstance(target, str) and not target.startswith(("http://", "https://"))


def _as_target(target: Any) -> Any:
    """Refuse what nobody can be notified by, without repeating it."""
    is_text = isinstance(target, str)
    if (target is not None and not is_text) or (is_text and not is_command(target) and not urlsplit(target).hostname):
        raise wrong("notify is neither a command nor an http(s) address, such as https://HOST/PATH")
    return target


Target = Annotated[
    str | None,
    BeforeValidator(_as_target),
    Field(
        description="an http(s) address for a POST, or a command (typed, never in a file), told once each that it "
        "finished, failed, was stopped, collapsed (a run) or used up its budget (a sweep); it is kept nowhere, as it "
        "may hold a secret",
        exclude=True,
        repr=False,
    ),
]

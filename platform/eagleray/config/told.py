"""Who is told of a run's or a sweep's end: a setting that may hold a secret, so it is kept nowhere."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from eagleray.config.mistakes import wrong


def _as_target(target: Any) -> Any:
    """Refuse what nobody can be notified by, without repeating it."""
    is_address = isinstance(target, str) and target.startswith(("http://", "https://"))
    if (target is not None and not isinstance(target, str)) or (is_address and not urlsplit(target).hostname):
        raise wrong("notify is neither a command nor an http(s) address, such as https://HOST/PATH")
    return target


Target = Annotated[
    str | None,
    BeforeValidator(_as_target),
    Field(
        description="a command, or an http(s) address for a POST, told once each that it finished, failed, was "
        "stopped, collapsed (a run) or used up its budget (a sweep); it is kept nowhere, as it may hold a secret",
        exclude=True,
        repr=False,
    ),
]

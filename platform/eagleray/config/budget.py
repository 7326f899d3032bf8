"""How long a sweep may take."""

from datetime import date, datetime, time, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from eagleray.config.mistakes import wrong
from eagleray.config.sections import Strict

OVER = "at the end of the budget"  # why a trial was stopped, in its record; a resumed sweep continues it


def _as_text(value: Any) -> Any:
    """Return a time as it was written: YAML reads 18:00 as 1080, and dates as dates.

    Raises:
        ConfigError: it is no time.
    """
    if type(value) is int:  # 18 is an hour
        minutes = value if value >= 60 else value * 60
        text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    else:
        text = value.isoformat() if isinstance(value, date) else str(value)
    try:
        moment(text, datetime.now().astimezone())
    except ValueError:
        raise wrong(f"budget.until={text} is no time; write 18:00, 2030-12-31 or 2030-12-31T18:00") from None
    return text


class Budget(Strict, frozen=True):
    """When a sweep ends, whatever is unfinished then."""

    hours: Annotated[float | None, Field(gt=0, description="of wall clock, from each start or resume on")] = None
    until: Annotated[
        str | None,
        BeforeValidator(lambda value: value if value is None else _as_text(value)),
        Field(description="a time of day (18:00: the next), or a date with or without a time, of this machine's clock"),
    ] = None

    def end(self, now: datetime) -> datetime:
        """Return the earlier of both ends.

        Args:
            now: the start, with a time zone.
        """
        ends = [
            *([now + timedelta(hours=self.hours)] if self.hours else []),
            *([moment(self.until, now)] if self.until else []),
        ]
        return min(ends, default=datetime.max.replace(tzinfo=now.tzinfo))


def moment(text: str, now: datetime) -> datetime:
    """Return the moment that a text names.

    >>> start = datetime.fromisoformat("2030-01-01T12:00+00:00")
    >>> [str(moment(text, start)) for text in ("18:00", "09:30", "2030-01-05")]
    ['2030-01-01 18:00:00+00:00', '2030-01-02 09:30:00+00:00', '2030-01-05 00:00:00+00:00']

    Raises:
        ValueError: it names none.
    """
    try:
        clock = time.fromisoformat(text)
        at = datetime.combine(now, clock, clock.tzinfo or now.tzinfo)
    except ValueError:
        at = datetime.fromisoformat(text)
        return at if at.tzinfo else at.replace(tzinfo=now.tzinfo)
    return at if at > now else at + timedelta(days=1)

"""The runs that earlier starts of a sweep have begun, and those that they have left."""

from pathlib import Path

from eagleray.config import Sweep
from eagleray.config.budget import OVER
from eagleray.config.search_points import Point, points, read, trial_count
from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record


def begun(sweep: Sweep, directory: Path) -> list[Point]:
    """Return the runs that have a record in a sweep's directory.

    Raises:
        ConfigError: one of them is of another sweep.
    """
    records = [Record.open(place.parent) for place in sorted(directory.glob("trials/*/record.json"))]
    return [_point(sweep, record) for record in records if record.kind == "trial"]


def left(sweep: Sweep, directory: Path) -> list[str]:
    """Return the runs that the end of the budget has left, in words."""
    trials = [record for record in Record.open(directory).children() if record.kind == "trial"]
    stopped = sorted(record.name for record in trials if record.status["message"] == OVER)
    missing = trial_count(sweep) - len(trials)
    unfinished = [f"{len(stopped)} stopped {OVER}: {', '.join(stopped)}"] if stopped else []
    if missing <= 0:
        return unfinished
    known = {point.name for point in points(sweep, begun(sweep, directory))} - {record.name for record in trials}
    return [*unfinished, f"{missing} not started {OVER}{': ' if known else ''}{', '.join(sorted(known))}"]


def _point(sweep: Sweep, record: Record) -> Point:
    number, seed = int(record.tags["point"]), int(record.params["seed"])
    try:
        values = read(sweep, record.params)
    except ConfigError as error:
        raise ConfigError(f"{record.directory} is of another sweep: {error}") from None
    return Point(number, values, seed, record.tags["label"], record.directory.name)

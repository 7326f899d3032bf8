"""The runs that an earlier start of a sweep has begun."""

from pathlib import Path

from eagleray.config import Sweep
from eagleray.config.search_points import Point, read
from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record


def begun(sweep: Sweep, directory: Path) -> list[Point]:
    """Return the runs that have a record in a sweep's directory.

    Raises:
        ConfigError: one of them is of another sweep.
    """
    records = [Record.open(place.parent) for place in sorted(directory.glob("trials/*/record.json"))]
    return [_point(sweep, record) for record in records if record.kind == "trial"]


def _point(sweep: Sweep, record: Record) -> Point:
    number, seed = int(record.tags["point"]), int(record.params["seed"])
    try:
        values = read(sweep, record.params)
    except ConfigError as error:
        raise ConfigError(f"{record.directory} is of another sweep: {error}") from None
    return Point(number, values, seed, record.tags["label"], record.directory.name)

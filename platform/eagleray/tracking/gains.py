"""Measure how far each trial is above the floors, as metrics of MLflow.

A column of the runs' table can then show it. It is made from the directories when the sweep has ended.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from eagleray.runs.record import Record

SAME = ("data", "image_size", "encoder")  # what a floor may depend on, the most important first


def gain_name(metric: str, floor: str) -> str:
    """Return the name of the metric, such as `knn_above_random`."""
    return f"{metric}_above_{floor}"


def gains(record: Record) -> dict[str, float]:
    """Return how much better a trial is than the floors of its seed.

    A negative number is worse, whichever end of the metric is better. It is empty for anything but a trial of a sweep
    that has ended, and has no floor that did not measure the metric (a floor has no classifier and no speed).
    """
    parent = record.parent if record.kind == "trial" else None
    if parent is None or parent.state == "running":
        return {}
    sweep = _ended(parent.directory, parent.status["time"])
    value, mine, found = record.summary.get(sweep.metric), record.file(), {}
    if value is None:
        return {}
    for kind in sweep.kinds:
        alike = [each for each in sweep.floors if each.kind == kind and each.file["seed"] == mine["seed"]]
        if nearest := max(alike, key=lambda floor: [floor.file[key] == mine[key] for key in SAME], default=None):
            gain = sweep.sign * (value - nearest.value)
            found[gain_name(sweep.metric, kind)] = round(gain, 6)  # pages show all digits, and 0.92 - 0.72 has 17
    return found


@dataclass(frozen=True)
class _Floor:
    """A floor that measured the metric."""

    kind: str
    file: dict[str, Any]
    value: float


@dataclass(frozen=True)
class _Ended:
    """What the trials of a sweep are compared by, and with."""

    metric: str
    sign: int
    kinds: list[str]
    floors: list[_Floor]


@lru_cache(maxsize=4)
def _ended(directory: Path, ended: int) -> _Ended:
    """Read a sweep that ended at a time, once for all its trials."""
    sweep = Record.open(directory)
    file = sweep.file()
    metric = file["metric"]
    finished = [each for each in sweep.children() if each.kind == "floor" and each.state == "finished"]
    floors = [
        _Floor(each.tags["floor"], each.file(), each.summary[metric]) for each in finished if metric in each.summary
    ]
    return _Ended(metric, 1 if file["mode"] == "max" else -1, file["floor"], floors)

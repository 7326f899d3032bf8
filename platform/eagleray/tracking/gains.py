"""Measure how far each trial is above the floors, as metrics of MLflow.

A column of the runs' table can then show it. It is made from the directories when the sweep has ended.
"""

from functools import lru_cache
from pathlib import Path

from eagleray.runs.record import Record

SAME = ("data", "image_size", "encoder")  # what a floor may depend on, the most important first


def gain_name(metric: str, floor: str) -> str:
    """Return the name of the metric, such as `knn_above_random`."""
    return f"{metric}_above_{floor}"


def gains(record: Record) -> dict[str, float]:
    """Return how much better a trial is than the floors of its seed.

    A negative number is worse, whichever end of the metric is better. It is empty for anything but a trial of a sweep
    that has ended.
    """
    sweep = record.parent if record.kind == "trial" else None
    if sweep is None or sweep.state == "running":
        return {}
    question, mine = sweep.file(), record.file()
    metric, sign = question["metric"], 1 if question["mode"] == "max" else -1
    value, found = record.summary.get(metric), {}
    if value is None:
        return {}
    floors = _floors(sweep.directory, sweep.status["time"])
    for kind in question["floor"]:
        alike = [each for each in floors if each.tags["floor"] == kind and each.file()["seed"] == mine["seed"]]
        if nearest := max(alike, key=lambda floor: [floor.file()[key] == mine[key] for key in SAME], default=None):
            gain = sign * (value - nearest.summary[metric])
            found[gain_name(metric, kind)] = round(gain, 6)  # pages show all digits, and 0.92 - 0.72 has seventeen
    return found


@lru_cache(maxsize=4)
def _floors(sweep: Path, ended: int) -> list[Record]:
    """Read the floors of a sweep that ended at a time.

    They are read once for all trials.
    """
    return [each for each in Record.open(sweep).children() if each.kind == "floor" and each.state == "finished"]

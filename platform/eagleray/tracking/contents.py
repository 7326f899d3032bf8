"""Put what a run's directory has into the words of MLflow."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from eagleray.runs.record import METRICS, SYSTEM, Record
from eagleray.tracking.descriptions import description, display_name, tags_for
from eagleray.tracking.inputs import HAS_IMAGES, VIEWS

MOST, OF_A_KIND = 1000, 100  # what MLflow takes in one call: in all, and of params or tags
Point = tuple[int, str, float, int]  # step, metric, value, time in ms


class Rows:
    """Reads the points of a run as its directory grows."""

    def __init__(self) -> None:
        self.offsets: dict[str, int] = {}  # bytes of metrics.jsonl and system.jsonl that were read
        self.step = 0  # the highest in them
        self.nonfinite = 0  # NaN and infinities in metrics.jsonl

    def read(self, record: Record) -> list[Point]:
        """Return the new points, in the order of their steps.

        Of rows with the same step the last one counts.
        """
        points: dict[tuple[int, str], Point] = {}
        for file in (METRICS, SYSTEM):
            rows, self.offsets[file] = record.read(self.offsets.get(file, 0), file=file)
            for row in rows:
                self.step = max(self.step, row["step"])
                points |= {point[:2]: point for point in self._points(row)}
        return sorted(points.values())

    def _points(self, row: Mapping[str, Any]) -> Iterator[Point]:
        for name, value in row["metrics"].items():
            if math.isfinite(value):
                yield row["step"], name_of(name), value, row["time"]
            else:  # it would break the charts of MLflow's pages
                self.nonfinite += 1
                yield row["step"], "nonfinite", self.nonfinite, row["time"]


def params_of(record: Record) -> dict[str, str]:
    """Return all settings of a run."""
    return {name_of(name): text_of(value) for name, value in record.params.items()}


def tags_of(record: Record, before: Mapping[str, str], parent_id: str | None) -> dict[str, str]:
    """Return the tags of a run.

    Args:
        record: of the run.
        before: the tags that it has there.
        parent_id: of its sweep there.
    """
    status = record.status
    tags = {
        **{f"environment.{name}": value for name, value in record.environment.items()},
        **tags_for(description(record), before),
        **(HAS_IMAGES if (record.directory / VIEWS).exists() else {}),
        "kind": record.kind,
        **record.tags,
        "eagleray.key": record.key,
        "eagleray.state": status["state"],
        "eagleray.message": status["message"],
        "mlflow.runName": display_name(record),
        "mlflow.source.name": "eagleray",
        "mlflow.source.git.commit": record.environment.get("commit"),
        "mlflow.user": record.environment.get("user"),
        "mlflow.parentRunId": parent_id,
    }
    return {name_of(name): text_of(value, 8000) for name, value in tags.items() if value is not None}


def changed_params(
    now: Mapping[str, str], params: Mapping[str, str], tags: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the params that are new, and tags for those that a resumed run has changed.

    MLflow never changes a param.

    Args:
        now: the run's params.
        params: those that MLflow has.
        tags: the tags that it has.
    """
    new = {name: value for name, value in now.items() if name not in params}
    resumed = {
        f"resumed.{name}": value
        for name, value in now.items()
        if params.get(name, value) != value or f"resumed.{name}" in tags
    }
    return new, resumed


def batches(
    params: Mapping[str, str], tags: Mapping[str, str], points: Iterable[Point]
) -> Iterator[dict[str, list[Any]]]:
    """Yield the arguments of few calls to `log_batch` that send everything, the points in their order."""
    from mlflow.entities import Metric, Param, RunTag

    left = {
        "params": [Param(*each) for each in params.items()],
        "tags": [RunTag(*each) for each in tags.items()],
        "metrics": [Metric(name, value, at, step) for step, name, value, at in points],
    }
    while any(left.values()):
        batch, room = {}, MOST
        for kind, items in left.items():
            count = min(room, MOST if kind == "metrics" else OF_A_KIND)
            batch[kind], left[kind] = items[:count], items[count:]
            room -= len(batch[kind])
        yield batch


def name_of(name: str) -> str:
    """Replace characters that MLflow does not accept.

    It would refuse a whole batch for one of them.
    """
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def text_of(value: Any, length: int = 6000) -> str:
    """Return a value as text.

    Equal numbers give the same text, whether from a file or a sampler.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format(value, ".8g")
    if isinstance(value, list | tuple):
        value = f"[{', '.join(text_of(each) for each in value)}]"
    return str(value)[:length]

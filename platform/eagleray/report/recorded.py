"""A recorded run as comparisons see it, from its directory or from MLflow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eagleray.runs.record import PLACES, Record


@dataclass(frozen=True)
class Recorded:
    """One run, wherever it was read from.

    Values read from both places are equal: MLflow keeps params as text, with eight digits.
    """

    name: str
    key: str  # its ID in MLflow, or its directory
    kind: str  # sweep, trial, floor or run
    parent: str | None  # the key of its sweep
    created: int  # milliseconds since 1970
    state: str
    message: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]  # the last of each; finite ones
    code: str  # version of the code that made it
    images: str | None = None  # the digest of the images that it used, wherever they lie; None: not recorded
    epochs: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # the metrics after each; MLflow has none
    experiment: str = ""  # the ID of its experiment in MLflow; empty: read from a directory

    @property
    def varied(self) -> list[str]:
        """The keys that its sweep varies; of a sweep, its own."""
        return self.tags.get("varied", "").split()

    @property
    def seed(self) -> int | None:
        return self.params.get("seed")


def from_directory(record: Record) -> Recorded:
    """Read a run from its directory.

    An unfinished one has the metrics of its last epoch.
    """
    status = record.status
    rows = [(row["epoch"], {name: row[name] for name in row if name not in PLACES}) for row in record.metrics()]
    measured = {name: value for _, metrics in rows for name, value in metrics.items()}
    return Recorded(
        record.title if record.kind == "sweep" else record.name,
        key=str(record.directory),
        kind=record.kind,
        parent=str(record.parent_directory) if record.above else None,
        created=record.created,
        state=status["state"],
        message=status["message"],
        params={key: _plain(value) for key, value in record.params.items()},
        tags=record.tags,
        metrics=_finite({**measured, **status["summary"]}),
        code=_code(record.environment),
        images=(record.data() or {}).get("digest"),
        epochs={int(epoch): _finite(metrics) for epoch, metrics in rows if epoch is not None},
    )


def from_mlflow(row: Mapping[str, Any]) -> Recorded:
    """Convert a run that `tracking.rows` has read."""
    tags = row["tags"]
    return Recorded(
        row["name"],
        key=row["run_id"],
        kind=tags.get("kind", "run"),
        parent=row["parent"],
        created=row["created"],
        state=row["state"],
        message=tags.get("eagleray.message", ""),
        params={key: _number(text) for key, text in row["params"].items()},
        tags=tags,
        metrics=_finite(row["metrics"]),
        code=_code({key.removeprefix("environment."): value for key, value in tags.items()}),
        images=row["images"],
        experiment=row["experiment_id"],
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _number(text: str) -> Any:
    for number_of in (int, float):
        try:
            return number_of(text)
        except ValueError:
            continue
    return text


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _code(environment: Mapping[str, Any]) -> str:
    """Return the commit, or the version outside a repository."""
    if commit := environment.get("commit"):
        return f"{commit[:9]}{'+' if environment.get('uncommitted_changes') in (True, 'true') else ''}"
    return str(environment.get("eagleray", ""))

"""Read the runs to compare, from directories or from MLflow's rows."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eagleray.report.analysis import TrialResult
from eagleray.runs.record import PLACES, Record


def trials_of(sweep: Record, varied: Sequence[str]) -> list[TrialResult]:
    """Read the runs of a sweep from its directory.

    Unfinished ones have the metrics of their last epoch.
    """
    results = []
    for record in sweep.children():
        status, rows, floor = record.status, record.metrics(), record.tags.get("floor", "")
        measured = {name: value for row in rows for name, value in row.items() if name not in PLACES}
        results.append(
            TrialResult(
                record.name,
                {} if floor else {key: record.params.get(key) for key in varied},
                point=record.tags["point"],
                label=record.tags["label"],
                seed=record.params.get("seed"),
                floor=floor,
                state=status["state"],
                metrics=_finite({**measured, **status["summary"]}),
                message=status["message"],
            )
        )
    return results


def trials_of_rows(rows: Sequence[Mapping[str, Any]]) -> list[TrialResult]:
    """Convert the runs of an MLflow experiment.

    They come from `tracking.rows`, and keep the params that differ between them. Runs outside a sweep form one point if
    they differ only in their seed.
    """
    runs = [row for row in rows if row["tags"].get("kind") != "sweep"]
    trials = [row for row in runs if "floor" not in row["tags"]]
    texts = {key: {row["params"].get(key) for row in trials} for row in trials for key in row["params"]}
    varied = [key for key, values in texts.items() if len(values) > 1 and key != "seed"]
    results = []
    for row in runs:
        tags, floor = row["tags"], row["tags"].get("floor", "")
        params = {} if floor else {key: _value(row["params"].get(key)) for key in varied}
        results.append(
            TrialResult(
                row["name"],
                params,
                point=tags.get("point", json.dumps(params, sort_keys=True, default=str)),
                label=tags.get("label", row["name"]),
                seed=_value(row["params"].get("seed")),
                floor=floor,
                sweep=row["parent"] or "",
                state=row["state"],
                metrics=_finite(row["metrics"]),
            )
        )
    return results


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _value(text: str | None) -> Any:
    """Return a stored param as the number it was.

    MLflow stores params as text; other text stays.
    """
    for number_of in (int, float):
        try:
            return number_of(text or "")
        except ValueError:
            continue
    return text

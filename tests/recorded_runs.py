"""Directories of runs and sweeps as training leaves them, made in milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eagleray.config import Sweep, load_run, validated
from eagleray.config.metrics import meanings
from eagleray.config.search_points import Point, points, sweep_params, varied_keys
from eagleray.config.settings import settings
from eagleray.runs.record import Record

VARY = {"method.temperature": [0.1, 0.2], "augment.flip": [0, 0.5]}


def knn_of(point: Point) -> float:
    """Return a kNN accuracy for which only flips matter; seeds differ a little."""
    noise = (0.0, 0.004, 0.001, 0.006, 0.007, 0.002, 0.005, 0.003)[(2 * point.number + point.seed) % 8]
    return 0.8 - 0.2 * point.values.get("augment.flip", 0) + 0.01 * point.seed + noise


def recorded_sweep(directory: Path, knn: Callable[[Point], float] = knn_of, **changes: Any) -> tuple[Sweep, Record]:
    """Record a finished sweep and its floor, raw pixels."""
    sweep = validated(Sweep, {"name": "s", "question": "Which?", "search": "grid", "vary": VARY, "seeds": 2, **changes})
    parent = Record.create(
        directory, name=sweep.name, experiment=sweep.name, run=sweep.model_dump(mode="json"),
        params=sweep_params(sweep), tags={"kind": "sweep", "varied": varied_keys(sweep.vary)},
        meanings={name: metric.meaning for name, metric in sweep.metrics.items()},
    )  # fmt: skip
    for point in points(sweep):
        run, place = point.run(sweep), directory / "trials" / point.name
        record = Record.create(
            place, name=point.name, experiment=sweep.name, run=point.alone(sweep).file(), params=point.params(sweep),
            parent=parent, tags=point.tags, meanings=meanings(run),
        )  # fmt: skip
        finish(record, run.epochs or 0, knn=knn(point), linear=knn(point) + 0.05, loss=2.0)
    for seed in range(sweep.seeds):
        tags = {"kind": "floor", "floor": "pixels", "point": "raw pixels digits", "label": "raw pixels"}
        floor = Record.create(
            directory / f"trials/raw-pixels-digits-seed{seed}", name=f"raw pixels digits seed{seed}",
            experiment=sweep.name, run={"data": "digits"}, params={"data.name": "digits", "seed": seed}, parent=parent,
            tags=tags,
        )  # fmt: skip
        finish(floor, 0, knn=0.7 + 0.01 * seed)
    return sweep, parent


def recorded_run(directory: Path, *overrides: str, knn: float = 0.8, **facts: Any) -> Record:
    """Record a finished run outside sweeps."""
    run = load_run(None, list(overrides))
    record = Record.create(
        directory, name=directory.name, experiment=run.tracking.experiment, run=run.file(), params=settings(run),
        meanings=meanings(run), **facts,
    )  # fmt: skip
    finish(record, run.epochs or 0, knn=knn, linear=knn + 0.1, loss=2.0)
    return record


def finish(record: Record, epochs: int, **metrics: float) -> None:
    for epoch in range(epochs + 1):
        record.append(100 * epoch, metrics, epoch)
    record.finish("finished", summary=metrics)

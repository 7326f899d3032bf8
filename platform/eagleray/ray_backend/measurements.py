"""Measure a sweep's floors and test its winner.

On a cluster each measurement is a Ray task, on a machine like those of the trials. On a single machine the driver
measures after the trials: it has already imported what a new process would import for seconds.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
import torch

from eagleray.config import Run, Sweep, read_run
from eagleray.config.floors import FloorKind
from eagleray.config.search_points import as_trial
from eagleray.contracts.paths import located, shared
from eagleray.ray_backend.callbacks import Watch
from eagleray.ray_backend.failures import answer_of
from eagleray.runs.failures import keep_error
from eagleray.runs.floors import Floor, floors, measure
from eagleray.runs.record import Record
from eagleray.runs.restore import evaluated_on_test, recorded_run
from eagleray.storage.copy import of_record
from eagleray.storage.mirror import mirrored, refresh

Deferred = Callable[[], Any]  # waits for a result, or computes it


class Measurements:
    """Measures the floors and the winner of one sweep.

    Args:
        sweep: whose floors and winner are measured.
        parent: the record of the sweep.
        in_tasks: measure in Ray tasks, not in this process.
        watch: shows the floors.
    """

    def __init__(self, sweep: Sweep, parent: Record, *, in_tasks: bool, watch: Watch | None):
        self.sweep, self.parent, self.in_tasks, self.watch = sweep, parent, in_tasks, watch

    def floors(self, runs: list[Run]) -> Deferred:
        """Start measuring the floors of some runs.

        Return a function that waits for all of them.
        """
        records = [
            (floor, floor_record(floor, self.parent)) for floor in floors(runs, self.sweep.floor, self.sweep.metric)
        ]
        results = [
            self._start(measure_floor, floor.kind, floor.run.file(), shared(record.directory))
            for floor, record in records
            if record.state != "finished"
        ]

        def finish() -> None:
            self._finish("floors measured", results)
            measured: dict[str, list[dict[str, float]]] = {}
            for floor, record in records:
                refresh(record.directory, of_record)
                measured.setdefault(floor.point, []).append(record.summary)
            if self.watch:
                for point, metrics in measured.items():
                    self.watch.floor(point, metrics)

        return finish

    def winner(self) -> None:
        """Measure the best point's runs on the test set.

        Each is measured once and tagged `winner`. Without a test set, or with `run.evaluate.test=false`, nothing is
        measured.
        """
        best = winner(self.sweep, self.parent)
        wanted = self.sweep.run.get("evaluate", {}).get("test", True)
        self._finish("runs of the winner measured on the test set", [self._test(record) for record in best if wanted])
        winners = {record.key for record in best}
        for record in self.parent.children():  # a sweep that was extended may have had another winner
            if record.key in winners or "winner" in record.tags:
                with mirrored(record.directory, of_record):
                    Record.open(record.directory).tag({"winner": "yes" if record.key in winners else "no"})

    def _finish(self, what: str, results: list[Deferred]) -> None:
        for done, result in enumerate(results, 1):
            result()
            if self.watch:
                self.watch.work(what, done, len(results))

    def _test(self, record: Record) -> Deferred:
        file = as_trial(self.sweep, recorded_run(record)).file()
        return self._start(measure_test, file, shared(record.directory))

    def _start(self, measure: Callable[..., None], *arguments: Any) -> Deferred:
        if not self.in_tasks:
            return lambda: measure(*arguments)
        share = {"num_cpus": self.sweep.cpus_per_trial, "num_gpus": self.sweep.gpus_per_trial}
        result = ray.remote(measure).options(**share).remote(*arguments)
        return lambda: answer_of(result)


def winner(sweep: Sweep, parent: Record) -> list[Record]:
    """Return the runs of the best point.

    Points are compared by their means over seeds; of equal ones the first is taken. The list is empty if no point
    finished with all seeds.
    """
    points: dict[int, list[Record]] = {}
    for record in parent.children():
        if record.kind == "trial" and record.state == "finished" and sweep.metric in record.summary:
            points.setdefault(int(record.tags["point"]), []).append(record)
    complete = [records for _, records in sorted(points.items()) if len(records) == sweep.seeds]
    pick = max if sweep.mode == "max" else min
    return pick(complete, key=lambda records: fmean(r.summary[sweep.metric] for r in records), default=[])


def floor_record(floor: Floor, parent: Record) -> Record:
    """Open or create the record of a floor.

    It is a child of the sweep, like the sweep's trials.
    """
    directory = parent.directory / "trials" / floor.name.replace(" ", "-")
    if (directory / "status.json").exists():
        return Record.open(directory)
    with mirrored(directory, of_record):
        return Record.create(
            directory,
            name=floor.name,
            experiment=parent.experiment,
            params=floor.params,
            run=floor.run.file(),
            meanings=parent.meanings,
            parent=parent,
            tags=floor.tags,
            uri=parent.uri,
        )


def measure_floor(kind: FloorKind, file: dict[str, Any], directory: str) -> None:
    """Measure a floor and record it."""
    place = Path(located(directory))
    with mirrored(place):
        run, record = read_run(file), Record.open(place)
        torch.set_num_threads(run.threads or 1)
        try:
            found = measure(kind, run)
            found.keep(record.artifacts)
        except Exception as error:
            keep_error(record, error)
            raise
        record.append(0, found, 0)
        record.finish("finished", summary=found)


def measure_test(file: dict[str, Any], directory: str) -> None:
    """Measure a finished run once on the test set.

    Record the metrics with its last epoch.
    """
    place = Path(located(directory))
    with mirrored(place):
        run, record = read_run(file), Record.open(place)
        if any(name.startswith("test_") for name in record.summary):
            return
        torch.set_num_threads(run.threads or 1)
        if found := evaluated_on_test(run, record.directory):
            found.keep(record.artifacts, beside=True)
            last = record.metrics()[-1]
            record.append(last["step"], found, last["epoch"])
            record.finish("finished", summary={**record.summary, **found})

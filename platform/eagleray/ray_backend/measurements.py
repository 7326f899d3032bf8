"""What is measured beside the trials of a sweep: the floors under them, and their winner on the test part.

On a cluster that is a Ray task each, on a machine like those of the trials; on a machine of one's own the driver does
it when the trials are over, because it has all at hand that a new process would take seconds to import.
"""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import ray
import torch

from eagleray.config import Run, Sweep, read_run
from eagleray.config.floors import FloorKind
from eagleray.ray_backend.callbacks import Watch
from eagleray.runs.floors import Floor, floors, measure
from eagleray.runs.record import Record
from eagleray.runs.restore import evaluated_on_test, recorded_run

Later = Callable[[], Any]  # waits for a result, or computes it


class Measurements:
    """Measures the floors and the winner of one sweep.

    Args:
        sweep: the question.
        parent: its record.
        in_tasks: whether Ray measures, or this process.
        watch: is told of the floors.
    """

    def __init__(self, sweep: Sweep, parent: Record, *, in_tasks: bool, watch: Watch | None):
        self.sweep, self.parent, self.in_tasks, self.watch = sweep, parent, in_tasks, watch

    def floors(self, runs: list[Run]) -> Later:
        """Begins with the floors under some runs; call what is returned to have them all."""
        records = [(floor, floor_record(floor, self.parent)) for floor in floors(runs, self.sweep.floor)]
        results = [
            self._begin(measure_floor, floor.kind, floor.run.file(), str(record.directory))
            for floor, record in records
            if record.state != "finished"
        ]

        def finish() -> None:
            for result in results:
                result()
            measured: dict[str, list[dict[str, float]]] = {}
            for floor, record in records:
                measured.setdefault(floor.point, []).append(record.summary)
            if self.watch:
                for point, metrics in measured.items():
                    self.watch.floor(point, metrics)

        return finish

    def winner(self) -> None:
        """Measures the runs of the best point once on the test part, and tags them `winner`.

        Without a test part, or with `run.evaluate.test=false`, nothing is measured.
        """
        best = winner(self.sweep, self.parent)
        wanted = self.sweep.run.get("evaluate", {}).get("test", True)
        for result in [self._begin(measure_test, str(record.directory)) for record in best if wanted]:
            result()
        for record in best:
            record.tag({"winner": "yes"})

    def _begin(self, measure: Callable[..., None], *arguments: Any) -> Later:
        if not self.in_tasks:
            return lambda: measure(*arguments)
        share = {"num_cpus": self.sweep.cpus_per_trial, "num_gpus": self.sweep.gpus_per_trial}
        result = ray.remote(measure).options(**share).remote(*arguments)
        return lambda: ray.get(result)


def winner(sweep: Sweep, parent: Record) -> list[Record]:
    """The runs of the best point, best by the mean over its seeds; none if no point finished with all its seeds."""
    points: dict[str, list[Record]] = {}
    for record in parent.children():
        if record.kind == "trial" and record.state == "finished" and sweep.metric in record.summary:
            points.setdefault(record.tags["point"], []).append(record)
    whole = [records for records in points.values() if len(records) == sweep.seeds]
    pick = max if sweep.mode == "max" else min
    return pick(whole, key=lambda records: fmean(r.summary[sweep.metric] for r in records), default=[])


def floor_record(floor: Floor, parent: Record) -> Record:
    """The record of a floor: a child of the sweep like its trials."""
    directory = parent.directory / "trials" / floor.name.replace(" ", "-")
    if (directory / "status.json").exists():
        return Record.open(directory)
    return Record.create(
        directory,
        name=floor.name,
        experiment=parent.experiment,
        params={"seed": floor.run.seed},
        run=floor.run.file(),
        meanings=parent.meanings,
        parent=parent,
        tags=floor.tags,
        uri=parent.uri,
    )


def measure_floor(kind: FloorKind, file: dict[str, Any], directory: str) -> None:
    """Measures a floor and records it."""
    run, record = read_run(file), Record.open(directory)
    torch.set_num_threads(run.threads or 1)
    metrics = measure(kind, run)
    record.append(0, metrics, 0)
    record.finish("finished", summary=metrics)


def measure_test(directory: str) -> None:
    """Measures a run that has finished on the test part, once, and records it beside its last epoch."""
    record = Record.open(directory)
    if any(name.startswith("test_") for name in record.summary):
        return
    run = recorded_run(record)
    torch.set_num_threads(run.threads or 1)
    if metrics := evaluated_on_test(run, record.directory):
        last = record.metrics()[-1]
        record.append(last["step"], metrics, last["epoch"])
        record.finish("finished", summary={**record.summary, **metrics})

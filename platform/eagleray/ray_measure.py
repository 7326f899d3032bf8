"""What is measured beside the trials of a sweep: the floors under them, and their winner on the test part."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
import torch

from eagleray.config import Run, Sweep, validated
from eagleray.floor import Floor, floors
from eagleray.ray_watch import Watch
from eagleray.record import Record
from eagleray.reload import on_test


def measure_floors(sweep: Sweep, runs: list[Run], parent: Record, watch: Watch | None) -> Callable[[], None]:
    """Begins to measure the floors beside the trials; call what is returned to wait for them."""
    wanted = {floor.name: floor for floor in floors(runs)} if sweep.floor else {}
    records = {name: _floor_record(floor, parent) for name, floor in wanted.items()}
    missing = {name: record for name, record in records.items() if record.state != "finished"}
    task = ray.remote(_measure_floor).options(num_cpus=sweep.cpus_per_trial, num_gpus=sweep.gpus_per_trial)
    results = [task.remote(wanted[name].run.file(), wanted[name].raw, str(r.directory)) for name, r in missing.items()]

    def tell() -> None:
        for name, record in records.items():
            if watch:
                watch.trial(name, {}, "running" if record.state == "running" else record.state, 0, 0, record.summary)

    def wait() -> None:
        ray.get(results)
        tell()

    tell()
    return wait


def measure_winner(sweep: Sweep, parent: Record) -> None:
    """Measures the runs of the best point once on the test part; the best by the mean over its seeds.

    They are tagged `winner`. Without a test part, or with `run.evaluate.test=false`, nothing is measured.
    """
    best = winner(sweep, parent)
    parts = sweep.run.get("evaluate", {})
    task = ray.remote(_measure_test).options(num_cpus=sweep.cpus_per_trial, num_gpus=sweep.gpus_per_trial)
    if parts.get("test", True):
        ray.get([task.remote(str(record.directory)) for record in best])
    for record in best:
        record.tag({"winner": "yes"})


def winner(sweep: Sweep, parent: Record) -> list[Record]:
    """The runs of the best point, one a seed; none if no point has finished with all of its seeds."""
    points: dict[str, list[Record]] = {}
    for record in parent.children():
        if record.state == "finished" and sweep.metric in record.summary and record.tags.get("kind") != "floor":
            points.setdefault(record.name.partition("-")[0], []).append(record)
    whole = [records for records in points.values() if len(records) == sweep.seeds]
    pick = max if sweep.mode == "max" else min
    return pick(whole, key=lambda records: fmean(r.summary[sweep.metric] for r in records), default=[])


def _floor_record(floor: Floor, parent: Record) -> Record:
    directory = parent.directory / "trials" / floor.name.replace(" ", "-")
    if (directory / "status.json").exists():
        return Record.open(directory)
    return Record.create(
        directory,
        name=floor.name,
        experiment=parent.experiment,
        params={},
        run=floor.run.file(),
        parent=parent,
        tags={"kind": "floor"},
        uri=parent.uri,
    )


def _measure_floor(file: dict[str, Any], raw: bool, directory: str) -> None:
    run, record = validated(Run, file), Record.open(directory)
    torch.set_num_threads(run.threads or 1)
    metrics = Floor(record.name, run, raw).measure()
    record.append(0, metrics, 0)
    record.finish("finished", summary=metrics)


def _measure_test(directory: str) -> None:
    record = Record.open(directory)
    run = validated(Run, _file(record.directory))
    torch.set_num_threads(run.threads or 1)
    if any(name.startswith("test_") for name in record.summary):
        return
    metrics = on_test(run, record.directory)
    if metrics:
        last = record.metrics()[-1]
        record.append(last["step"], metrics, last["epoch"])
        record.finish("finished", summary={**record.summary, **metrics})


def _file(directory: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((directory / "run.yaml").read_text(encoding="utf-8"))

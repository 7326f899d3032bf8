"""A sweep on Ray Tune: which trials there are, how they run, who ends them, and what is measured beside them.

The records of the trials are the truth: a sweep that is resumed is run again, its recorded epochs replayed instead
of computed. So nothing depends on what Ray kept of it.
"""

import functools
import operator
import shutil
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from eagleray.config import Run, Sweep
from eagleray.config.search_points import Point, points, read
from eagleray.contracts.errors import ConfigError
from eagleray.ray_backend.callbacks import TrialFollower, Watch
from eagleray.ray_backend.cluster import check_resources, connected
from eagleray.ray_backend.measurements import Measurements
from eagleray.ray_backend.pbt import Population
from eagleray.ray_backend.tpe import Tpe
from eagleray.ray_backend.trial import RecordedEpochs, TrialActor
from eagleray.runs.preflight import check, planned
from eagleray.runs.record import Record

HEAD = "node:__internal_head__"  # a resource that every Ray has once
RETRIES = 2  # of a trial that failed: its machine may have been at fault
HALVING = 3  # of as many trials that reach a rung, ASHA lets one go on (Li et al. 2020, arXiv 1810.05934, use 3 and 4)


def sweep(
    sweep: Sweep,
    directory: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    watch: Watch | None = None,
) -> list[Record]:
    """Runs the trials of a sweep, its floors beside them, and measures the winner on the test part.

    Args:
        sweep: the question.
        directory: of the sweep's record, which is made if it is not there; trials and floors lie in `trials/`. On a
            cluster, one that all machines share.
        resume: go on with what lies there: what has ended stays, what has not goes on from its checkpoint.
        address: of a Ray cluster; None: this machine.
        watch: is told what happens.

    Returns:
        The records of the trials and floors.

    Raises:
        ConfigError: something cannot work; nothing was started.
        KeyboardInterrupt: somebody stopped it; `resume` takes it up.
    """
    directory = directory.absolute()
    known = points(sweep) if sweep.search != "tpe" else []
    _check_directory(sweep, directory, known, resume)
    runs = planned(sweep)
    check(sweep, runs)
    workers = max(run.workers for run in runs)
    with connected(address):
        if address is None:
            check_resources(workers, sweep.cpus_per_trial, sweep.gpus_per_trial)
        parent = _record(sweep, directory)
        follower = TrialFollower(watch)
        for point in known:
            follower.notify(trial_config(sweep, directory, point), "waiting")
        measurements = Measurements(sweep, parent, in_tasks=address is not None, watch=watch)
        finish_floors = measurements.floors(runs)
        _tuner(sweep, directory, known, runs, follower).fit()
        shutil.rmtree(directory / "ray", ignore_errors=True)
        if len(follower.ended) < _count(sweep, known):
            raise KeyboardInterrupt
        finish_floors()
        measurements.winner()
    return parent.children()


def trial_config(sweep: Sweep, directory: Path, point: Point) -> dict[str, Any]:
    """All that a trial needs to know, as plain values; `values` is what a population may change."""
    is_population = sweep.scheduler == "pbt"
    place = directory / "trials" / point.name
    return {
        "directory": str(place),
        "run": point.run(sweep).file(),
        "params": point.params,
        "tags": point.tags,
        "values": _current(place, point) if is_population else {},
        "replay": not is_population,
        "stop_collapsed": sweep.stop_collapsed,
        "cpus": sweep.cpus_per_trial,
        "gpus": sweep.gpus_per_trial,
    }


def _tuner(sweep: Sweep, directory: Path, known: list[Point], runs: list[Run], follower: TrialFollower) -> tune.Tuner:
    workers = max(run.workers for run in runs)
    shutil.rmtree(directory / "ray", ignore_errors=True)
    config = functools.partial(trial_config, sweep, directory)
    tpe = Tpe(sweep, lambda point: {"trial": config(point)}, _begun(sweep, directory)) if not known else None
    return tune.Tuner(
        _trainable(sweep, workers),
        param_space={} if tpe else {"trial": tune.grid_search([config(point) for point in known])},
        tune_config=tune.TuneConfig(
            metric=f"metrics/{sweep.metric}",
            mode=sweep.mode,
            search_alg=tpe,
            scheduler=_scheduler(sweep, max(run.epochs for run in runs), directory),
            num_samples=_count(sweep, known) if tpe else 1,
            max_concurrent_trials=_concurrent(sweep, workers),
            reuse_actors=True,
            trial_name_creator=_label,
            trial_dirname_creator=_label,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(directory),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[follower],
            verbose=0,
        ),
    )


def _trainable(sweep: Sweep, workers: int) -> type[TrialActor]:
    if workers > 1:
        # It only waits for its workers, and a share of a core would be missing to them; of nothing is refused.
        return tune.with_resources(TrialActor, tune.PlacementGroupFactory([{HEAD: 0.001}]))
    return tune.with_resources(TrialActor, {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial})


def _scheduler(sweep: Sweep, epochs: int, directory: Path) -> TrialScheduler:
    if sweep.scheduler == "asha":
        return ASHAScheduler(time_attr="epoch", grace_period=sweep.grace, max_t=epochs, reduction_factor=HALVING)
    if sweep.scheduler == "pbt":
        recorded = [RecordedEpochs.of(directory / "trials" / point.name) for point in points(sweep)]
        behind = min((each.epoch for each in recorded if not each.ended), default=0)
        return Population(sweep, behind // sweep.grace * sweep.grace)
    return FIFOScheduler()


def _concurrent(sweep: Sweep, workers: int) -> int | None:
    """A trial of several workers begins without them, so Ray must not begin more trials than there is room for."""
    if workers == 1:
        return sweep.concurrent
    there = ray.cluster_resources()
    wanted = {"CPU": workers * sweep.cpus_per_trial, "GPU": workers * sweep.gpus_per_trial}
    room = min(there.get(kind, 0) / count for kind, count in wanted.items() if count)
    return min(max(1, int(room)), sweep.concurrent or int(room) or 1)


def _count(sweep: Sweep, known: list[Point]) -> int:
    return len(known) or (sweep.trials or 0) * sweep.seeds


def _label(trial: Any) -> str:
    return Path(trial.config["trial"]["directory"]).name


# --- what lies there already -----------------------------------------------------------------------------------


def _record(sweep: Sweep, directory: Path) -> Record:
    file = sweep.model_dump(mode="json")
    uri = sweep.run.get("tracking", {}).get("uri")
    tags = {"kind": "sweep"}
    meanings = {name: metric.meaning for name, metric in sweep.metrics.items()}
    return Record.create(
        directory, name=sweep.name, experiment=sweep.name, params={}, run=file, tags=tags, meanings=meanings, uri=uri
    )


def _check_directory(sweep: Sweep, directory: Path, known: list[Point], resume: bool) -> None:
    if not resume and any(directory.glob("trials/*")):
        raise ConfigError(
            f"{directory} holds trials already; take that sweep up with --resume, or take another directory"
        )
    for point in known:
        place = directory / "trials" / point.name
        if (place / "record.json").exists() and (params := dict(Record.open(place).params)) != point.params:
            raise ConfigError(f"{place} is of another sweep: it has {params}, and this one has {point.params} there")


def _begun(sweep: Sweep, directory: Path) -> dict[int, dict[str, Any]]:
    """The points that an earlier start has begun, by their number."""
    records = [Record.open(place.parent) for place in directory.glob("trials/*/record.json")]
    trials = [record for record in records if record.kind == "trial"]
    return {int(record.tags["point"]): read(sweep, record.params) for record in trials}


def _current(place: Path, point: Point) -> dict[str, Any]:
    """The values of a trial as a population has changed them last."""
    if not (place / "record.json").exists():
        return dict(point.values)
    file = Record.open(place).file()
    return {key: functools.reduce(operator.getitem, key.split("."), file) for key in point.values}

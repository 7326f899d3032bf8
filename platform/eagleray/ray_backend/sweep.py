"""Run a sweep on Ray Tune.

Its trials, search and scheduler run here, and the measurements of its floors and winner. Only the records of the trials
count: a resumed sweep is run again, with its recorded epochs replayed instead of computed. So nothing depends on the
state that Ray keeps.
"""

import functools
import operator
import shutil
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from eagleray.config import Run, Sweep
from eagleray.config.registry import find
from eagleray.config.search_points import Point, points, read, trial_count
from eagleray.contracts.errors import ConfigError
from eagleray.ray_backend.callbacks import TrialFollower, Watch
from eagleray.ray_backend.cluster import check_resources, connected
from eagleray.ray_backend.measurements import Measurements
from eagleray.ray_backend.trial import RecordedEpochs, TrialActor
from eagleray.runs.preflight import check, planned
from eagleray.runs.record import Record

HEAD = "node:__internal_head__"  # a resource that every Ray has once
RETRIES = 2  # of a trial that failed: its machine may have been the cause


def sweep(
    sweep: Sweep,
    directory: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    watch: Watch | None = None,
) -> list[Record]:
    """Run a sweep's trials and measure its floors.

    The winner is measured on the test set.

    Args:
        sweep: what to vary and compare.
        directory: of the sweep's record, created if missing; trials and floors are in `trials/`. On a cluster, one
            that all machines share.
        resume: continue the sweep in the directory: ended trials stay, the others continue from their checkpoints.
        address: of a Ray cluster; None: this machine.
        watch: shows trials and floors.

    Returns:
        The records of the trials and floors.

    Raises:
        ConfigError: a setting cannot work; nothing was started.
        KeyboardInterrupt: a person stopped the sweep; `resume` continues it.
    """
    directory = directory.absolute()
    known = points(sweep)
    _check_directory(sweep, directory, known, resume)
    runs = planned(sweep)
    read = check(sweep, runs)
    if watch:
        watch.data(read)
    workers = max(run.workers for run in runs)
    with connected(address):
        if address is None:
            check_resources(workers, sweep.cpus_per_trial, sweep.gpus_per_trial)
        parent = _record(sweep, directory, read)
        follower = TrialFollower(watch)
        for point in known:
            follower.notify(trial_config(sweep, directory, point), "waiting")
        measurements = Measurements(sweep, parent, in_tasks=address is not None, watch=watch)
        finish_floors = measurements.floors(runs)
        _tuner(sweep, directory, known, runs, follower).fit()
        shutil.rmtree(directory / "ray", ignore_errors=True)
        if len(follower.ended) < trial_count(sweep):
            raise KeyboardInterrupt
        finish_floors()
        measurements.winner()
    return parent.children()


def trial_config(sweep: Sweep, directory: Path, point: Point) -> dict[str, Any]:
    """Return the configuration of a trial, as plain values.

    A population may change its `values`.
    """
    place = directory / "trials" / point.name
    return {
        "directory": str(place),
        "run": point.run(sweep).file(),
        "params": point.params,
        "tags": point.tags,
        "values": _current(place, point) if sweep.changes_trials else {},
        "replay": not sweep.changes_trials,
        "stop_collapsed": sweep.stop_collapsed,
        "cpus": sweep.cpus_per_trial,
        "gpus": sweep.gpus_per_trial,
    }


def _tuner(sweep: Sweep, directory: Path, known: list[Point], runs: list[Run], follower: TrialFollower) -> tune.Tuner:
    workers = max(run.workers for run in runs)
    shutil.rmtree(directory / "ray", ignore_errors=True)
    config = functools.partial(trial_config, sweep, directory)
    searcher = None
    if sweep.learns:
        search = find("search", sweep.search).load()()
        searcher = search.build(sweep, lambda point: {"trial": config(point)}, _begun(sweep, directory))
    return tune.Tuner(
        _trainable(sweep, workers),
        param_space={} if searcher else {"trial": tune.grid_search([config(point) for point in known])},
        tune_config=tune.TuneConfig(
            metric=f"metrics/{sweep.metric}",
            mode=sweep.mode,
            search_alg=searcher,
            scheduler=_scheduler(sweep, max(run.epochs for run in runs), directory),
            num_samples=trial_count(sweep) if searcher else 1,
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
        # The actor only waits for its workers, so it takes no core from them; Ray refuses an empty request.
        return tune.with_resources(TrialActor, tune.PlacementGroupFactory([{HEAD: 0.001}]))
    return tune.with_resources(TrialActor, {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial})


def _scheduler(sweep: Sweep, epochs: int, directory: Path) -> TrialScheduler:
    recorded = [RecordedEpochs.of(directory / "trials" / point.name) for point in points(sweep)]
    done = min((each.epoch for each in recorded if not each.ended), default=0)
    return find("scheduler", sweep.scheduler).load()().build(sweep, epochs, done)


def _concurrent(sweep: Sweep, workers: int) -> int | None:
    """Return how many trials may run at once.

    Ray starts a trial of several workers before it has room for them.
    """
    if workers == 1:
        return sweep.concurrent
    available = ray.cluster_resources()
    wanted = {"CPU": workers * sweep.cpus_per_trial, "GPU": workers * sweep.gpus_per_trial}
    room = min(available.get(kind, 0) / count for kind, count in wanted.items() if count)
    return min(max(1, int(room)), sweep.concurrent or int(room) or 1)


def _label(trial: Any) -> str:
    return Path(trial.config["trial"]["directory"]).name


# --- records of an earlier start -------------------------------------------------------------------------------


def _record(sweep: Sweep, directory: Path, read: list[str]) -> Record:
    file = sweep.model_dump(mode="json")
    uri = sweep.run.get("tracking", {}).get("uri")
    tags = {"kind": "sweep", "data": "\n".join(read)}
    meanings = {name: metric.meaning for name, metric in sweep.metrics.items()}
    return Record.create(
        directory, name=sweep.name, experiment=sweep.name, params={}, run=file, tags=tags, meanings=meanings, uri=uri
    )


def _check_directory(sweep: Sweep, directory: Path, known: list[Point], resume: bool) -> None:
    if not resume and any(directory.glob("trials/*")):
        raise ConfigError(
            f"{directory} has trials already; continue that sweep with --resume, or use another directory"
        )
    for point in known:
        place = directory / "trials" / point.name
        if (place / "record.json").exists() and (params := dict(Record.open(place).params)) != point.params:
            raise ConfigError(f"{place} is of another sweep: it has {params}, but this sweep needs {point.params}")


def _begun(sweep: Sweep, directory: Path) -> dict[int, dict[str, Any]]:
    """Return the points begun earlier, by their number.

    An earlier start of the sweep has begun them.
    """
    records = [Record.open(place.parent) for place in directory.glob("trials/*/record.json")]
    trials = [record for record in records if record.kind == "trial"]
    return {int(record.tags["point"]): read(sweep, record.params) for record in trials}


def _current(place: Path, point: Point) -> dict[str, Any]:
    """Return the current values of a trial.

    They are those after the last change by a population.
    """
    if not (place / "record.json").exists():
        return dict(point.values)
    file = Record.open(place).file()
    return {key: functools.reduce(operator.getitem, key.split("."), file) for key in point.values}

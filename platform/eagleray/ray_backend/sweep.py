"""Run a sweep on Ray Tune.

Its trials, search and scheduler run here, and the measurements of its floors and winner. Only the records of the trials
count: a resumed sweep is run again, with its recorded epochs replayed instead of computed. So nothing depends on the
state that Ray keeps.
"""

import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from eagleray.config import Run, Sweep
from eagleray.config.budget import Budget
from eagleray.config.metrics import headlines
from eagleray.config.registry import find
from eagleray.config.search_points import Point, imposed, points, sweep_params, trial_count, varied_keys
from eagleray.config.settings import is_neutral
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import shared
from eagleray.contracts.report import Failed
from eagleray.ray_backend.callbacks import FailFast, TrialFollower, Watch
from eagleray.ray_backend.cluster import check_resources, connected, wait_for_room
from eagleray.ray_backend.measurements import Measurements
from eagleray.ray_backend.placement import keep_cores
from eagleray.ray_backend.probe import check_nodes
from eagleray.ray_backend.shared_storage import clear, storage_of
from eagleray.ray_backend.signals import send
from eagleray.ray_backend.trial import VALUES, RecordedEpochs, TrialActor, place_of
from eagleray.runs.assemble import images_of
from eagleray.runs.begun import begun
from eagleray.runs.failures import reopen_unfinished, told
from eagleray.runs.hangs import HangWatch
from eagleray.runs.preflight import planned
from eagleray.runs.record import Record
from eagleray.runs.rehearsal import longest, rehearse
from eagleray.runs.writer import check_images
from eagleray.storage.mirror import flush

HEAD = "node:__internal_head__"  # a resource that every Ray has once
RETRIES = 2  # of a trial without progress whose machine was the cause of its failure (see runs/failures.py)


def sweep(
    sweep: Sweep,
    directory: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    watch: Watch | None = None,
) -> list[Record]:
    """Run a sweep's trials and measure its floors.

    The winner is measured on the test set. If the budget is used up before, trials stay unfinished, and floors and
    winner are left for `resume` to measure.

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
        Failed: the first trials failed at the same place of the code.
        KeyboardInterrupt: a person stopped the sweep; `resume` continues it.
    """
    directory = directory.absolute()
    end = _end(sweep)
    known = points(sweep, () if sweep.changes_trials else begun(sweep, directory))
    _check_directory(sweep, directory, known, resume)
    runs = planned(sweep)
    read = rehearse(sweep, runs)
    _check_images(directory, runs)
    if watch:
        watch.data(read)
    workers = max(run.fewest_workers for run in runs)
    with connected(address):
        ensure_room = check_resources if address is None else wait_for_room
        ensure_room(workers, sweep.cpus_per_trial, sweep.gpus_per_trial)
        if address is not None:
            check_nodes(runs, directory)
        parent = _record(sweep, directory, read)
        reopen_unfinished(parent)
        flush(directory)
        follower = TrialFollower(watch, trial_count(sweep))
        for point in known:
            config = trial_config(sweep, directory, point, end)
            follower.notify(config, *_recorded(place_of(config)))
        measurements = Measurements(sweep, parent, in_tasks=address is not None, watch=watch)
        finish_floors = measurements.floors(runs)
        with HangWatch(directory, send):
            _tuner(sweep, directory, known, runs, follower, end).fit()
        clear(directory)
        if follower.broken:
            failed = len(follower.first)
            raise Failed(
                f"the sweep has ended, because its first {failed} trials failed alike. {told(follower.broken)}"
            )
        if len(follower.ended | follower.left) < trial_count(sweep):
            raise KeyboardInterrupt
        if not follower.left:
            finish_floors()
            measurements.winner()
    return parent.children()


def trial_config(sweep: Sweep, directory: Path, point: Point, end: float | None = None) -> dict[str, Any]:
    """Return the configuration of a trial, as plain values.

    A population may change its `values`. `end` is that of the budget, in seconds since 1970.
    """
    place = directory / "trials" / point.name
    return {
        "directory": shared(place),
        "run": (run := point.alone(sweep)).file(),
        "imposed": imposed(sweep, run),
        "params": point.params(sweep),
        "varied": point.varied,
        "tags": point.tags,
        "values": _current(place, point) if sweep.changes_trials else {},
        "replay": not sweep.changes_trials,
        "stop_collapsed": sweep.stop_collapsed,
        "cpus": sweep.cpus_per_trial,
        "gpus": sweep.gpus_per_trial,
        "end": end,
    }


def _end(sweep: Sweep) -> float | None:
    """Return when the budget of a sweep that starts now is used up."""
    return sweep.budget.end(datetime.now().astimezone()).timestamp() if sweep.budget != Budget() else None


def _tuner(
    sweep: Sweep,
    directory: Path,
    known: list[Point],
    runs: list[Run],
    follower: TrialFollower,
    end: float | None,
) -> tune.Tuner:
    workers = max(run.workers for run in runs)
    keep_cores()
    clear(directory)
    config = functools.partial(trial_config, sweep, directory, end=end)
    searcher = None
    if sweep.learns:
        search = find("search", sweep.search).load()()
        past = {(point.number, point.seed): point for point in begun(sweep, directory)}
        values = {number: dict(point.values) for (number, _), point in past.items()}
        searcher = search.build(
            sweep, lambda point: {"trial": config(past.get((point.number, point.seed)) or point)}, values
        )
    return tune.Tuner(
        _trainable(sweep, workers),
        param_space={} if searcher else {"trial": tune.grid_search([config(point) for point in known])},
        tune_config=tune.TuneConfig(
            metric=f"metrics/{sweep.metric}",
            mode=sweep.mode,
            search_alg=searcher,
            scheduler=_scheduler(sweep, known, longest(runs), directory),
            num_samples=trial_count(sweep) if searcher else 1,
            max_concurrent_trials=_concurrent(sweep, workers),
            reuse_actors=True,
            trial_name_creator=_label,
            trial_dirname_creator=_label,
        ),
        run_config=tune.RunConfig(
            name="ray",
            **storage_of(directory),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[follower],
            stop=FailFast(follower),
            verbose=0,
        ),
    )


def _trainable(sweep: Sweep, workers: int) -> type[TrialActor]:
    if workers > 1:
        # The actor only waits for its workers, so it takes no core from them; Ray refuses an empty request.
        return tune.with_resources(TrialActor, tune.PlacementGroupFactory([{HEAD: 0.001}]))
    return tune.with_resources(TrialActor, {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial})


def _scheduler(sweep: Sweep, known: list[Point], epochs: int, directory: Path) -> TrialScheduler:
    recorded = [RecordedEpochs.of(directory / "trials" / point.name) for point in known]
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
    return place_of(trial.config["trial"]).name


# --- records of an earlier start -------------------------------------------------------------------------------


def _record(sweep: Sweep, directory: Path, read: list[str]) -> Record:
    file = sweep.model_dump(mode="json")
    uri = sweep.run.get("tracking", {}).get("uri")
    return Record.create(
        directory,
        name=sweep.name,
        experiment=sweep.name,
        params=sweep_params(sweep),
        run=file,
        tags={
            "kind": "sweep",
            "varied": varied_keys(sweep.vary),
            "data": "\n".join(read),
            "headlines": " ".join(headlines(sweep.metrics)),
        },
        meanings={name: metric.meaning for name, metric in sweep.metrics.items()},
        uri=uri,
    )


def _check_directory(sweep: Sweep, directory: Path, known: list[Point], resume: bool) -> None:
    if not resume and any(directory.glob("trials/*")):
        raise ConfigError(
            f"{directory} has trials already; continue that sweep with --resume, or use another directory"
        )
    for point in known:
        place = directory / "trials" / point.name
        if not (place / "record.json").exists():
            continue
        before, now = Record.open(place).params, point.params(sweep)
        for key in sorted(key for key in {*before, *now} if not is_neutral(key) and before.get(key) != now.get(key)):
            raise ConfigError(
                f"{place} is of another sweep: it has {key}={before.get(key)}, but this sweep needs {now.get(key)}"
            )


def _check_images(directory: Path, runs: list[Run]) -> None:
    """Refuse to add trials to those that were trained on other images."""
    using = {json.dumps([run.data.name, run.data.config.model_dump(mode="json")]): run for run in runs}
    images = functools.cache(lambda source: images_of(using[source]))
    for place in sorted(directory.glob("trials/*/data.json")):
        record = Record.open(place.parent)
        facts = record.data() or {}
        if (source := json.dumps([facts["name"], facts["source"]])) in using:
            check_images(record, images(source))


def _recorded(place: Path) -> tuple[str, dict[str, Any] | None]:
    """Return the state of a trial to show before it runs, and its last result."""
    before = RecordedEpochs.of(place)
    if not before.ended:
        return "waiting", None
    record = Record.open(place)
    return record.state, {"epoch": before.epoch, "metrics": record.summary}


def _current(place: Path, point: Point) -> dict[str, Any]:
    """Return the current values of a trial.

    They are those after the last change by a population.
    """
    is_known = (place / "record.json").exists()
    return json.loads(Record.open(place).tags[VALUES]) if is_known else dict(point.values)

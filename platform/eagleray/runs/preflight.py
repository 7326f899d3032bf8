"""Check all runs of a sweep before it starts."""

import json
from collections.abc import Iterable
from functools import cache

from eagleray.config import Run, Sweep
from eagleray.config.metrics import check_metric
from eagleray.config.run import changed
from eagleray.config.search_points import as_trial, points
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import probes
from eagleray.data.description import described
from eagleray.data.images import Data
from eagleray.runs.assemble import build_method, fitted, images_of


def check(sweep: Sweep, runs: list[Run]) -> list[str]:
    """Check every planned run against its data.

    Loading it fills the cache that all trials share.

    Returns:
        What was read, a line for each kind of data.

    Raises:
        ConfigError: a run does not fit its data or its share of the machine, or reports no such metric.
    """
    _check_share(sweep)
    shortest = min(run.epochs for run in runs)
    if sweep.grace > shortest:
        raise ConfigError(f"grace={sweep.grace} is longer than a trial: run.epochs={shortest}")
    data, built = cache(_images_of), set()
    read: dict[str, None] = {}
    for run in runs:
        images = data(json.dumps(run.file()["data"]), run)
        info = fitted(run, images.info)
        read[described(images, info.image_size)] = None
        kind = json.dumps(
            [run.file()[key] for key in ("method", "encoder", "data", "image_size", "batch_size", "workers")]
        )
        if kind not in built:
            build_method(run, info)
            built.add(kind)
        labels, validation = images.train.labels is not None, images.validation is not None
        check_metric(sweep.metric, run, every_epoch=sweep.compares_every_epoch, labels=labels, validation=validation)
    if sweep.changes_trials:
        _check_changes(sweep, runs[0], data(json.dumps(runs[0].file()["data"]), runs[0]))
    return list(read)


def planned(sweep: Sweep) -> list[Run]:
    """Return the runs of a sweep.

    If its search learns from results, they are not known yet: return those at the ends of its ranges.
    """
    if sweep.learns:
        runs = [as_trial(sweep, run) for run in sweep.probes()]
        return [changed(run, {"seed": run.seed + more}) for run in runs for more in range(sweep.seeds)]
    return [point.run(sweep) for point in points(sweep)]


def _images_of(_: str, run: Run) -> Data:
    return images_of(run)


def _check_share(sweep: Sweep) -> None:
    share, device = sweep.gpus_per_trial, sweep.run.get("device")
    if share > 1 and share != int(share):
        raise ConfigError(
            f"gpus_per_trial={share}: only less than one GPU can be a fraction; set {int(share)} or {int(share) + 1}"
        )
    if device == "cuda" and not share:
        raise ConfigError("run.device=cuda needs a share of a GPU: set gpus_per_trial=1, or a fraction")
    if device == "cpu" and share:
        raise ConfigError(f"gpus_per_trial={share} has no effect with run.device=cpu; leave one of them out")
    workers = max(run.workers for run in sweep.probes())
    if workers > 1 and share != int(share):
        raise ConfigError(
            f"gpus_per_trial={share}: the {workers} workers of a trial need a whole GPU each; "
            "only trials of one worker can share a GPU"
        )
    if workers > 1 and sweep.changes_trials:
        raise ConfigError(
            f"scheduler={sweep.scheduler} needs trials of one worker, and these have workers={workers}; set workers=1"
        )


def _check_changes(sweep: Sweep, run: Run, data: Data) -> None:
    """Check the keys that a population changes.

    They must leave network and optimizer as they are.
    """
    if "optimizer.name" in sweep.vary:
        raise ConfigError(
            f"vary.optimizer.name cannot change during training (scheduler={sweep.scheduler}): "
            "another optimizer has another state"
        )
    for key, span in sweep.ranges().items():
        if key.startswith("method.") and len({_shapes(changed(run, {key: v}), data) for v in probes(span)}) > 1:
            raise ConfigError(
                f"vary.{key} changes the network's shape, so it cannot change during training "
                f"(scheduler={sweep.scheduler})"
            )


def _shapes(run: Run, data: Data) -> frozenset[tuple[str, Iterable[int]]]:
    state = build_method(run, fitted(run, data.info)).state_dict()
    return frozenset((name, tuple(value.shape)) for name, value in state.items())

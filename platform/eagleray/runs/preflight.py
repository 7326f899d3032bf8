"""Whether a sweep can be run and its question answered: asked of every run before the first one starts."""

import json
from collections.abc import Iterable
from functools import cache

from eagleray.config import Run, Sweep
from eagleray.config.mistakes import nearest
from eagleray.config.search_points import as_trial, changed, points
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import probes
from eagleray.data.images import Data
from eagleray.runs.assemble import build_method, fitted, images_of

EVERY_EPOCH = ("loss", "z_std", "z_rank")
WITHOUT_LABELS = ("std", "rank", "rankme", "dead", "alignment", "uniformity", "positive", "negative")
WITH_LABELS = ("knn", "linear")


def check(sweep: Sweep, runs: list[Run]) -> None:
    """Loads the data, which fills the cache that all trials share, and holds every planned run against it.

    Raises:
        ConfigError: a run does not fit its data or its share of the machine, or reports no such metric.
    """
    _check_share(sweep)
    shortest = min(run.epochs for run in runs)
    if sweep.grace > shortest:
        raise ConfigError(f"grace={sweep.grace} is longer than a trial: run.epochs={shortest}")
    data, built = cache(_images_of), set()
    for run in runs:
        images = data(json.dumps(run.file()["data"]), run)
        info = fitted(run, images.info)
        kind = json.dumps(
            [run.file()[key] for key in ("method", "encoder", "data", "image_size", "batch_size", "workers")]
        )
        if kind not in built:
            build_method(run, info)
            built.add(kind)
        _check_metric(sweep, run, images)
    if sweep.scheduler == "pbt":
        _check_changes(sweep, runs[0], data(json.dumps(runs[0].file()["data"]), runs[0]))


def planned(sweep: Sweep) -> list[Run]:
    """The runs of a sweep; where they are not known yet, those at the ends of its ranges."""
    if sweep.search == "tpe":
        return [as_trial(sweep, run) for run in sweep.probes()]
    return [point.run(sweep) for point in points(sweep)]


def reported(run: Run, data: Data) -> set[str]:
    """The names of all numbers that a run reports by its end (but for those of the test part)."""
    declared = set(run.method.declaration.values.get("metrics", {}))
    names = {*EVERY_EPOCH, *WITHOUT_LABELS, *declared}
    if data.validation is not None and data.train.labels is not None:
        names |= {"knn"} if run.evaluate.linear == "never" else {"knn", "linear"}
        names |= {"accuracy"} if run.labels is not None else set()
    return names


def _images_of(_: str, run: Run) -> Data:
    return images_of(run)


def _check_share(sweep: Sweep) -> None:
    share, device = sweep.gpus_per_trial, sweep.run.get("device")
    if share > 1 and share != int(share):
        raise ConfigError(f"gpus_per_trial={share}: above one, GPUs are whole; take {int(share)} or {int(share) + 1}")
    if device == "cuda" and not share:
        raise ConfigError("run.device=cuda needs a share of a GPU: set gpus_per_trial=1, or a fraction")
    if device == "cpu" and share:
        raise ConfigError(f"gpus_per_trial={share} is of no use with run.device=cpu; leave one of them out")
    workers = max(run.workers for run in sweep.probes())
    if workers > 1 and share != int(share):
        raise ConfigError(
            f"gpus_per_trial={share}: the {workers} workers of a trial need a whole GPU each; "
            "only trials of one worker share one"
        )
    if workers > 1 and sweep.scheduler == "pbt":
        raise ConfigError(f"scheduler=pbt changes trials of one worker, and these have workers={workers}")


def _check_metric(sweep: Sweep, run: Run, data: Data) -> None:
    name, there = sweep.metric, reported(run, data)
    if name not in there:
        raise ConfigError(f"metric={name}: {_why_missing(name, run, data, there)}")
    if sweep.scheduler == "none" or name in {*EVERY_EPOCH, *run.method.declaration.values.get("metrics", {})}:
        return
    if run.evaluate.every != 1:
        raise ConfigError(
            f"scheduler={sweep.scheduler} compares metric={name} after every epoch, "
            f"and run.evaluate.every={run.evaluate.every}; set it to 1"
        )
    if name == "linear" and run.evaluate.linear != "always":
        raise ConfigError(
            f"scheduler={sweep.scheduler} compares metric=linear after every epoch; "
            "set run.evaluate.linear=always, or take metric=knn"
        )


def _why_missing(name: str, run: Run, data: Data, there: set[str]) -> str:
    known = {*there, *WITH_LABELS, "accuracy"}
    free = f"take one that needs no labels ({', '.join(sorted(there))})"
    if name == "linear" and run.evaluate.linear == "never":
        return "it is not measured with run.evaluate.linear=never"
    if name == "accuracy" and run.labels is None:
        return f"{run.method.name} has no classifier; only a method that learns from labels reports it"
    if name in known and data.train.labels is None:
        return f"these images have no labels; {free}"
    if name in known and data.validation is None:
        return f"there are no validation images to measure it on; set run.data.validation=0.1, or {free}"
    if name.startswith("test_"):
        return "the test part is touched once, by the winner; trials are compared on validation"
    return f"{run.method.name} reports no such number{nearest(name, known)} (there are: {', '.join(sorted(there))})"


def _check_changes(sweep: Sweep, run: Run, data: Data) -> None:
    """What a population changes in flight must leave the network and the optimizer as they are."""
    if "optimizer.name" in sweep.vary:
        raise ConfigError("vary.optimizer.name cannot change in flight: another optimizer has another state")
    for key, span in sweep.ranges().items():
        if key.startswith("method.") and len({_shapes(changed(run, {key: v}), data) for v in probes(span)}) > 1:
            raise ConfigError(f"vary.{key} changes the network's shape, so it cannot change in flight (scheduler=pbt)")


def _shapes(run: Run, data: Data) -> frozenset[tuple[str, Iterable[int]]]:
    state = build_method(run, fitted(run, data.info)).state_dict()
    return frozenset((name, tuple(value.shape)) for name, value in state.items())

"""Read the images and build the networks of a sweep's runs, before it starts.

What can be known without that is checked in `preflight`.
"""

import json
from collections.abc import Iterable

from eagleray.config import Run, Sweep
from eagleray.config.metrics import check_metric
from eagleray.config.run import changed, epochs_of
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import probes
from eagleray.data.description import cautioned, described
from eagleray.data.images import Data
from eagleray.runs.assemble import build_method, fitted, opened_once
from eagleray.runs.preflight import check_grace, check_settings


def rehearse(sweep: Sweep, runs: list[Run]) -> list[str]:
    """Check every planned run with its images and network.

    Loading it fills the cache that all trials share.

    Returns:
        What was read, a line for each kind of data.

    Raises:
        ConfigError: a run does not fit its data or its share of the machine, or reports no such metric.
    """
    check_settings(sweep, runs)
    images_of, built = opened_once(), set[str]()
    read: dict[str, None] = {}
    for run in runs:
        images = images_of(run)
        info = fitted(run, images.info)
        check_grace(sweep, run, info.samples)
        read[described(images, info.image_size)] = None
        if caution := cautioned(images, run.labels):
            read[caution] = None
        kind = json.dumps(
            [run.file()[key] for key in ("method", "beside", "encoder", "data", "image_size", "batch_size", "workers")]
        )
        if kind not in built:
            build_method(run, info)
            built.add(kind)
        labels, validation = images.train.labels is not None, images.validation is not None
        check_metric(sweep.metric, run, every_epoch=sweep.compares_every_epoch, labels=labels, validation=validation)
    if sweep.changes_trials:
        _check_changes(sweep, runs[0], images_of(runs[0]))
    return list(read)


def longest(runs: list[Run]) -> int:
    """Return the epochs of the longest run."""
    images_of = opened_once()
    return max(run.epochs or epochs_of(run.file(), images_of(run).info.samples) or 1 for run in runs)


def _check_changes(sweep: Sweep, run: Run, data: Data) -> None:
    """Check the keys that a population changes.

    They must leave the network as it is.
    """
    for key, span in sweep.ranges().items():
        if key.startswith("method.") and len({_shapes(changed(run, {key: v}), data) for v in probes(span)}) > 1:
            raise ConfigError(
                f"vary.{key} changes the network's shape, so it cannot change during training "
                f"(scheduler={sweep.scheduler})"
            )


def _shapes(run: Run, data: Data) -> frozenset[tuple[str, Iterable[int]]]:
    state = build_method(run, fitted(run, data.info)).state_dict()
    return frozenset((name, tuple(value.shape)) for name, value in state.items())

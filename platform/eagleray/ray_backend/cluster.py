"""A Ray to run on: one of our own, started here and ended here, or a cluster that is there already."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from eagleray.contracts.errors import ConfigError

# What Ray reads from the environment; whoever has set one of these keeps it.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables beside ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run's record is its log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial ends without a metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they mean to who starts the sweep
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # soon noticed: a worker that was killed, and the end
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who asked for no GPU sees none
}
OBJECTS = 100 * 2**20  # bytes of shared memory: nothing large is sent, and a container may have little


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Inside, Ray can be used; afterwards what was started here is gone. A connection that is there is used.

    Args:
        address: of a cluster (`auto`, `host:port`); None starts a Ray on this machine.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    if address is None:
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS}
    else:
        own = {"runtime_env": {"env_vars": {name: os.environ[name] for name in SETTINGS}}}
    answer = signal.getsignal(signal.SIGTERM)
    try:
        # What goes wrong in a trial stands in its record, and tracebacks would tear a live table apart.
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except ConnectionError as error:
        raise ConfigError(f"no Ray answers at address={address}: {error}") from None
    if callable(answer) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, answer)  # Ray's own prints a stack trace and leaves
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(workers: int, cpus: float, gpus: float) -> None:
    """Whether the machines that are there can ever run so many workers at once.

    Raises:
        ConfigError: they cannot; without it, the run would wait for ever.
    """
    there = ray.cluster_resources()
    for kind, each, remedy in (("CPU", cpus, "cpus_per_trial"), ("GPU", gpus, "gpus_per_trial")):
        if workers * each > there.get(kind, 0):
            raise ConfigError(
                f"{workers} workers with {each:g} {kind} each are asked for, and there is {there.get(kind, 0):g} "
                f"{kind} in all; lower workers or {remedy}"
            )

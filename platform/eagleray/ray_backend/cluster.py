"""Connect to Ray.

It is started and ended on this machine, or a running cluster is used.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from eagleray.contracts.errors import ConfigError

# Environment variables that Ray reads; those that the user has set stay.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables in addition to ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run's record is its log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial ends without a metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths start from the directory where the sweep was started
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # notice soon that a worker was killed, or the end
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process that asked for no GPU sees none
}
OBJECTS = 100 * 2**20  # bytes of shared memory: nothing large is sent, and a container may have little


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray inside the block.

    Afterwards, what was started here is ended. An open connection is used and stays.

    Args:
        address: of a cluster (`auto`, `host:port`); None starts Ray on this machine.

    Raises:
        ConfigError: no Ray answers at the address.
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
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # Errors of a trial are in its record, and printed tracebacks would break a live table.
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except ConnectionError as error:
        raise ConfigError(f"no Ray answers at address={address}: {error}") from None
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own handler prints a stack trace and exits
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(workers: int, cpus: float, gpus: float) -> None:
    """Check that a trial's workers can run at once.

    Raises:
        ConfigError: they cannot, so the run would wait forever.
    """
    available = ray.cluster_resources()
    for kind, each, remedy in (("CPU", cpus, "cpus_per_trial"), ("GPU", gpus, "gpus_per_trial")):
        if workers * each > available.get(kind, 0):
            raise ConfigError(
                f"{workers} workers with {each:g} {kind} each need more than the {available.get(kind, 0):g} {kind} "
                f"in total; lower workers or {remedy}"
            )

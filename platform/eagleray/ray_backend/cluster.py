"""Connect to Ray.

It is started and ended on this machine, or a running cluster is used.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]  # compiled
from ray.autoscaler.sdk import request_resources
from ray.job_config import JobConfig

from eagleray.config.plugin_files import HERE
from eagleray.contracts.errors import ConfigError
from eagleray.ray_backend import tokens
from eagleray.runs.preflight import cluster_at

# Environment variables that Ray reads; those that the user has set stay.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables in addition to ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run's record is its log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial ends without a metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths start from the directory where the sweep was started
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # notice soon that a worker was killed, or the end
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",  # count again: a node may be lost, which Ray does not know at once
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's own controller does so
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # `preemption.py` asks, without a process of its own
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process that asked for no GPU sees none
}
ROOM = 600  # seconds in which a cluster's machines may start
OBJECTS = 100 * 2**20  # bytes of shared memory: nothing large is sent, and a container may have little


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray inside the block.

    Afterwards, what was started here is ended. An open connection is used and stays. What is started here listens on
    127.0.0.1 alone.

    Args:
        address: of a cluster (`auto`, `host:port`); None starts Ray on this machine.

    Raises:
        ConfigError: no Ray answers at the address, or it asks for another token.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    if address is None:
        tokens.keep_private()
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # for the workers' messages to each other
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS}
    else:
        address = _reached(address)
        here = {HERE: os.getcwd()}
        own = {"runtime_env": {"env_vars": {**here, **{name: os.environ[name] for name in SETTINGS}}}}
    own |= {"log_to_driver": False, "logging_level": logging.CRITICAL, "job_config": _Job()}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Errors of a trial are in its record, and printed tracebacks would break a live table.
        with nullcontext() if address else _on_loopback():
            ray.init(address=address or "local", **own)
    except ConnectionError as error:
        raise ConfigError(f"no Ray answers at address={address}: {error}") from None
    _restore(handlers)  # Ray's own of SIGTERM prints a stack trace and exits
    try:
        yield
    finally:
        ray.shutdown()
        _restore(handlers)  # Ray leaves SIGTERM without one, and Tune's of SIGINT swallows the first


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Handle signals as before Ray was started; only the main thread may."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


class _Job(JobConfig):
    """A job whose workers import nothing from the working directory, where Ray would have them look first."""

    def _serialize(self) -> str:
        here = os.getcwd()
        self._py_driver_sys_path = [place for place in self._py_driver_sys_path if place != here]
        return super()._serialize()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let the Ray that starts inside the block listen on 127.0.0.1 alone.

    Ray has this for macOS and Windows; elsewhere it reads the setting only once, when it is imported.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _reached(address: str) -> str:
    """Return the address of a cluster that accepts this user's token.

    Ray itself would try for 20 seconds, and not say why.
    """
    place = cluster_at(address)
    if not place.startswith("ray://"):
        tokens.authenticated(lambda: GcsClient(address=place), address)
    return place


def wait_for_room(workers: int, cpus: float, gpus: float) -> None:
    """Wait until a cluster has room for a trial's workers.

    Its machines may have to start first.

    Raises:
        ConfigError: they have not come in time.
    """
    request_resources(bundles=[{"CPU": cpus, **({"GPU": gpus} if gpus else {})}] * workers)
    end = time.monotonic() + ROOM
    try:
        while (missing := _missing(workers, cpus, gpus)) and time.monotonic() < end:
            time.sleep(1)
    finally:
        request_resources(bundles=[])  # else the cluster keeps the machines; the trials themselves ask for their share
    if missing:
        raise ConfigError(f"{missing}, and no machine has joined the cluster in {ROOM // 60} minutes")


def check_resources(workers: int, cpus: float, gpus: float) -> None:
    """Check that a trial's workers can run at once.

    Raises:
        ConfigError: they cannot, so the run would wait forever.
    """
    if missing := _missing(workers, cpus, gpus):
        raise ConfigError(missing)


def _missing(workers: int, cpus: float, gpus: float) -> str | None:
    available = ray.cluster_resources()
    for kind, each, remedy in (("CPU", cpus, "cpus_per_trial"), ("GPU", gpus, "gpus_per_trial")):
        if workers * each > available.get(kind, 0):
            return (
                f"{workers} workers with {each:g} {kind} each need more than the {available.get(kind, 0):g} {kind} "
                f"in total; lower workers or {remedy}"
            )
    return None

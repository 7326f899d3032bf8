"""A Ray of this machine for the tests of a file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from eagleray.ray_backend.cluster import SETTINGS


@contextmanager
def two_cores(gpus: int = 0) -> Iterator[None]:
    """Connect to a Ray of two cores whatever this machine has, and GPUs in name only."""
    os.environ.update(SETTINGS)
    memory = 100 * 2**20
    ray.init(
        "local", num_cpus=2, num_gpus=gpus, include_dashboard=False, log_to_driver=False, object_store_memory=memory
    )
    try:
        yield
    finally:
        ray.shutdown()

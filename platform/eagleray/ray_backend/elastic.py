"""Groups whose number of workers follows the machines that are there.

Ray Train's elastic policy chooses the number whenever a group starts. This one allows only numbers that share a batch
as `workers` do, counts no node that is about to go nor, at last, what others use, and leaves a group in peace while it
trains: Ray's own would end it in the middle of an epoch to let it grow. Here the driver asks it to save first, after an
epoch.
"""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from eagleray.ray_backend.preemption import drained

AGAIN = 1.0  # seconds between two looks for enough machines


class DivisorPolicy(ElasticScalingPolicy):
    """Chooses the largest number of workers that divides the most, and for which there is room.

    A group that has failed still has its share of the nodes when the next is chosen, so what is in use counts. If it is
    in use by others, the group does not start in time; then only what is free counts.
    """

    has_not_started = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._maybe_send_resource_request()
        config: Any = self.scaling_config
        each = config.resources_per_worker
        workers = largest(config.max_workers, room(each, in_use=not self.has_not_started))
        if workers < config.min_workers:
            time.sleep(AGAIN)  # Ray asks again at once
            return NoopDecision()
        self.has_not_started = True
        return ResizeDecision(num_workers=workers, resources_per_worker=each)

    def make_decision_for_running_worker_group(self, *_: Any, **more: Any) -> ScalingDecision:
        self.has_not_started = False
        self._maybe_send_resource_request()
        return NoopDecision()


class Growth:
    """Tells when a group may start again with more workers.

    Args:
        most: how many there may be.
        each: the resources of a worker.
    """

    def __init__(self, most: int, each: Mapping[str, float]):
        self.most, self.each = most, each
        self.last: tuple[int, int] | None = None  # from and to

    def is_possible(self, workers: int) -> bool:
        """Return whether there is room for more workers than a group has.

        It is told once: a start that did not lead to them would only be repeated.
        """
        more = room(self.each) if workers < self.most else 0
        growth = workers, largest(self.most, workers + more)
        is_new, self.last = growth != self.last, growth
        return is_new and growth[1] > workers


def largest(most: int, possible: int) -> int:
    """Return the largest number that is possible and divides the most; 0: there is none."""
    return max((count for count in range(1, min(most, possible) + 1) if most % count == 0), default=0)


def room(each: Mapping[str, float], *, in_use: bool = False) -> int:
    """Return for how many workers there is room on the nodes that stay.

    Args:
        each: the resources of a worker.
        in_use: count also what is in use now.
    """
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    nodes = alive if in_use else available_resources_per_node()
    staying = [nodes.get(node, {}) for node in alive.keys() - drained()]
    return sum(min(int(node.get(kind, 0) / count) for kind, count in each.items() if count) for node in staying)

"""Send signals to processes on any node of the cluster."""

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eagleray.runs.hangs import Beat, signalled

PATIENCE = 30  # seconds for a node to answer


def here() -> str:
    """Return the ID of this node; empty: Ray is not connected, and asking would start one."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def send(beat: Beat, number: int) -> bool:
    """Send a signal to a process; return whether it is there."""
    if beat.node == here():
        return signalled(beat, number)
    there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    task = ray.remote(signalled).options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote(beat, number)
    try:
        return ray.get(task, timeout=PATIENCE)
    except ray.exceptions.RayError:  # the node is gone, and with it the process
        return False

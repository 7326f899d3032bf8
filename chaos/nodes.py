"""Kill nodes under the workers of a run, and let others join; the run must end as if nothing had happened.

    python chaos/nodes.py [--runs 3] [--kills 2] [--out nodes.csv]

A cluster on this machine has a head without cores and three nodes of one core. A run of two workers is spread over two
of them. At a random moment of some random epochs the raylet of a node that has a worker gets SIGKILL with all that runs
on it, and a new node joins. Weights, optimizer state and rows must be those of the undisturbed run of the same cluster,
and afterwards nothing may hold a core. Times are those of `workers.py`; `ratio` is the duration of a run by that of the
undisturbed one.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from heads import NODE
from observed import below, concluded, differences, written
from ray.cluster_utils import Cluster
from workers import SETTINGS, WORKER, Watch, rows_of, trained

from eagleray.config import load_run
from eagleray.ray_backend import cluster as ray_backend
from eagleray.ray_backend.cluster import connected

NODES = 3
LEAKS = 60  # seconds after which nothing may hold a core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kills", type=int, default=2, help="in each run")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, help="where to write a row for each kill, as CSV")
    given = parser.parse_args()
    os.environ |= ray_backend.SETTINGS
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    for _ in range(NODES):
        cluster.add_node(**NODE)
    address = str(cluster.address)
    run = load_run(None, [*SETTINGS, "workers=2", f"epochs={given.epochs}"])
    found = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder, connected(address):
        watches = [Watch(Path(folder, "undisturbed"), [], random.Random(0))]
        seconds = [timed(run, watches[0], address)]
        for number in range(given.runs):
            draw = random.Random(number)
            epochs = sorted(draw.sample(range(1, given.epochs), given.kills))
            watch = NodeWatch(cluster, Path(folder, str(number)), epochs, draw)
            seconds.append(timed(run, watch, address))
            wrong = differences(watches[0].place, watch.place)
            wrong += "" if cores_are_free() else f" a core is held after {LEAKS} seconds"
            ratio = round(seconds[-1] / seconds[0], 2)
            found += rows_of(watch, given.kills, wrong, run=number, ratio=ratio)
            print(f"run {number}: {found[-1]}", flush=True)
            written(given.out, found)
    cluster.shutdown()
    concluded(found, given.out, "processes", "loop", "step", "all")


class NodeWatch(Watch):
    """Kills the node of a worker in place of the worker."""

    def __init__(self, cluster: Cluster, place: Path, epochs: list[int], draw: random.Random):
        super().__init__(place, epochs, draw)
        self.cluster = cluster

    def strike(self) -> None:
        """Kill a node with all that runs on it, then let another join."""
        victim = self.draw.choice(below(WORKER))
        raylets = {raylet_of(node): node for node in self.cluster.worker_nodes}
        node = next(raylets[each.pid] for each in victim.parents() if each.pid in raylets)
        for process in below_raylet(raylet_of(node)):
            os.kill(process, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(**NODE)


def raylet_of(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def below_raylet(raylet: int) -> list[int]:
    """Return the processes of a node, its raylet first."""
    workers = [each.pid for each in below("ray::") if raylet in (parent.pid for parent in each.parents())]
    return [raylet, *workers]


def timed(run: Any, watch: Watch, address: str) -> float:
    began = time.monotonic()
    trained(run, watch, address)
    return time.monotonic() - began


def cores_are_free() -> bool:
    end = time.monotonic() + LEAKS
    while ray.available_resources().get("CPU", 0) < NODES and time.monotonic() < end:
        time.sleep(0.5)
    return ray.available_resources().get("CPU", 0) >= NODES


if __name__ == "__main__":
    main()

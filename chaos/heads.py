"""Lose a whole cluster, or its head alone, in a sweep, and resume it on a new one; it must end as if nothing was.

    python chaos/heads.py [--sweeps 2] [--kills 3] [--out heads.csv]

A cluster of a head and two nodes of one core each, on this machine, runs the sweep of `drivers.py` with `--address`.
Some seconds after a new row, everything gets SIGKILL at once: head, nodes, driver (`all`); or GCS, the head's own
process, alone (`gcs`): the driver must end without help. Then a new cluster is started, and the same command with
`--resume` continues there. It prints the seconds that Ray took to start (`cluster`), and those from the command to a
new row.
"""

import argparse
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import ray
from commands import until
from drivers import Rows, disturbed, undisturbed
from observed import below, concluded, written
from ray.cluster_utils import Cluster

from eagleray.ray_backend.cluster import SETTINGS

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
KINDS = ("gcs", "all", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3, help="in each sweep")
    parser.add_argument("--epochs", type=int, default=120, help="of a trial: Ray needs a minute to notice a lost GCS")
    parser.add_argument("--out", type=Path, help="where to write a row for each kill, as CSV")
    given = parser.parse_args()
    os.environ |= SETTINGS
    found: Rows = []
    with tempfile.TemporaryDirectory() as folder, Clusters(KINDS) as clusters:
        whole = undisturbed(Path(folder, "undisturbed"), f"epochs={given.epochs}")
        for number in range(given.sweeps):
            words = lambda: [f"epochs={given.epochs}", "--address", clusters.address]  # noqa: E731
            found += disturbed(Path(folder, str(number)), whole, number, given.kills, clusters.lose, words)
            written(given.out, found)
    concluded(found, given.out, "noticed", "cluster", "train", "seconds")


class Clusters:
    """One cluster after the other, each lost in the next of some ways."""

    def __init__(self, kinds: Sequence[str]):
        self.kinds = cycle(kinds)

    def __enter__(self) -> "Clusters":
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def begin(self) -> float:
        """Start a cluster; return the seconds that it took."""
        began = time.monotonic()
        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            self.cluster.add_node(**NODE)
        return round(time.monotonic() - began, 2)

    def end(self) -> None:
        """Kill what is left of the cluster."""
        for node in self.cluster.list_all_nodes():
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        ray.shutdown()

    def lose(self, process: "subprocess.Popen[bytes]", place: Path, draw: random.Random) -> dict[str, Any]:
        """Lose the cluster, and start another."""
        kind, began = next(self.kinds), time.monotonic()
        if kind == "gcs":
            assert self.cluster.head_node is not None
            self.cluster.head_node.kill_gcs_server(check_alive=False)
            process.wait(300)
        else:
            process.kill()
        noticed = round(time.monotonic() - began, 2)
        process.wait()
        self.end()
        until(lambda: not below("ray::"), place)
        return {"kind": kind, "noticed": noticed, "cluster": self.begin()}


if __name__ == "__main__":
    main()

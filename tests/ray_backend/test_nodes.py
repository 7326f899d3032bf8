"""Several nodes: a run and a sweep spread over them, one lost and one added, end as on one machine."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

import eagleray
from eagleray.config import Run, Sweep, load_run, validated
from eagleray.config.search_points import points
from eagleray.contracts.errors import ConfigError
from eagleray.loop import train
from eagleray.ray_backend.cluster import SETTINGS
from eagleray.ray_backend.probe import check_nodes
from eagleray.ray_backend.sweep import sweep
from eagleray.runs.record import Record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

RUN = {"data": {"limit": 160}, "batch_size": 40, "epochs": 3, "encoder": {"width": 4}, "threads": 1, "device": "cpu",
       "precision": "fp32", "evaluate": {"linear": {"when": "never"}, "test": False}}  # fmt: skip
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
METHOD = '"""A method."""\nfrom eagleray_methods.simclr import SimCLR\n\n\nclass Fancy(SimCLR):\n    """It."""\n'


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and two nodes of one core each; both nodes can import a method of one's own."""
    lab = tmp_path_factory.mktemp("lab")
    (lab / "node_lab").mkdir()
    (lab / "node_lab/__init__.py").touch()
    (lab / "node_lab/fancy.py").write_text(METHOD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{lab}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.syspath_prepend(str(lab))
        os.environ.update(SETTINGS)
        nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        for _ in range(2):
            nodes.add_node(**NODE)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def address(cluster: Cluster) -> Iterator[str]:
    yield str(cluster.address)
    ray.shutdown()


def test_a_run_whose_workers_are_on_different_nodes_trains_as_one_process_does(address: str, tmp_path: Path):
    *_, alone = train(validated(Run, RUN), tmp_path / "alone")
    tracking = {"uri": "http://127.0.0.1:1", "runs": str(tmp_path / "runs")}
    result = eagleray.train({**RUN, "workers": 2, "tracking": tracking}, address=address)
    for name in ("loss", "std", "rank"):
        assert result.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-3), name
    assert result.metrics["knn"] == pytest.approx(alone.metrics["knn"], abs=0.02)


class LosesANode:
    """Kills a node while its trial runs, and lets another join."""

    def __init__(self, cluster: Cluster):
        self.cluster, self.lost = cluster, False

    def data(self, read: Any) -> None:
        pass

    def floor(self, name: str, metrics: Any) -> None:
        pass

    def trial(
        self, label: str, params: Mapping[str, Any], state: str, epoch: int, epochs: int, metrics: Mapping[str, float]
    ) -> None:
        if epoch and not self.lost:
            self.lost = True
            own, known = ray.get_runtime_context().get_node_id(), ray.nodes()
            others = {node["ObjectStoreSocketName"] for node in known if node["Alive"] and node["NodeID"] != own}
            lost = next(node for node in self.cluster.worker_nodes if node.plasma_store_socket_name in others)
            self.cluster.remove_node(lost, allow_graceful=False)
            self.cluster.add_node(**NODE)


def test_a_sweep_over_nodes_of_which_one_is_lost_and_one_added_ends_as_on_one_machine(
    cluster: Cluster, address: str, tmp_path: Path
):
    settings = {"name": "s", "run": {**RUN, "method": "node_lab.fancy"}, "search": "grid", "floor": [],
                "vary": {"method.temperature": [0.1, 0.5]}, "seeds": 2}  # fmt: skip
    question = validated(Sweep, settings)
    watch = LosesANode(cluster)
    trials = sweep(question, tmp_path / "sweep", address=address, watch=watch)
    assert watch.lost
    assert [trial.state for trial in trials] == ["finished"] * 4
    for point in points(question):
        *_, last = train(point.run(question), tmp_path / point.name)
        trial = Record.open(tmp_path / "sweep/trials" / point.name)
        assert [row["epoch"] for row in trial.metrics()] == [1, 2, 3]
        for name in ("loss", "knn"):
            assert trial.metrics()[-1][name] == last.metrics[name], (point.name, name)


def test_a_node_without_the_plugin_is_named_before_anything_starts(
    cluster: Cluster, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = os.environ["PYTHONPATH"].partition(os.pathsep)[2]
    bare = cluster.add_node(**NODE, env_vars={"PYTHONPATH": elsewhere})
    ray.init(address=address, log_to_driver=False)
    with pytest.raises(ConfigError, match=r"node_lab\.fancy.* \(on node .*\)"):
        check_nodes([load_run(None, ["method=node_lab.fancy"])], tmp_path)
    cluster.remove_node(bare)
    check_nodes([load_run(None, ["method=node_lab.fancy"])], tmp_path)
    assert list(tmp_path.iterdir()) == []

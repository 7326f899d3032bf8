"""Machines that come and go: a run goes on with the workers that there is room for, and ends as if none had gone."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.worker import global_worker
from ray.cluster_utils import Cluster
from ray.train import ScalingConfig

from eagleray.config import Run, load_run
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Report
from eagleray.loop import train
from eagleray.ray_backend import elastic
from eagleray.ray_backend.cluster import SETTINGS
from eagleray.ray_backend.elastic import DivisorPolicy, Growth, largest
from eagleray.ray_backend.workers import train_on_workers
from eagleray.runs.checkpoint import checkpoints, step_of
from eagleray.runs.hangs import beats_in
from eagleray.runs.record import CHANGES, SYSTEM, Record
from eagleray.runs.writer import recorded
from same_weights import assert_same_weights

RUN = ["optimizer.name=adamw", "optimizer.lr=2e-3",  # as in test_workers.py
       "data.limit=160", "batch_size=40", "encoder.width=4", "threads=1", "device=cpu", "precision=fp32",
       "evaluate.linear.when=never", "evaluate.test=false", "checkpoints.keep=99"]  # fmt: skip
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
STEPS = 4  # of an epoch
NOTICE = 60  # seconds
PREEMPTION = 2  # the reason that a cloud's spot machine gives, in Ray's autoscaler.proto
pytestmark = pytest.mark.timeout(400)


def a_run(*more: str) -> Run:
    return load_run(None, [*RUN, *more])


def test_only_numbers_that_share_a_batch_as_all_workers_do_are_chosen():
    assert [largest(6, possible) for possible in range(8)] == [0, 1, 2, 3, 3, 3, 6, 6]
    with pytest.raises(ConfigError, match=r"min_workers=3 does not divide workers=4, .*; those that can: 1, 2$"):
        a_run("workers=4", "min_workers=3")
    assert a_run("workers=4").fewest_workers == 4
    assert a_run("workers=4", "min_workers=2").fewest_workers == 2


def test_what_others_use_counts_until_a_group_could_not_start_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elastic, "room", lambda each, in_use: 5 if in_use else 3)
    monkeypatch.setattr(DivisorPolicy, "_maybe_send_resource_request", lambda _: None)
    policy = DivisorPolicy(ScalingConfig(num_workers=(2, 4), resources_per_worker={"CPU": 1}))

    def chosen() -> int | None:
        return getattr(policy.make_decision_for_non_running_worker_group(), "num_workers", None)

    assert [chosen(), chosen(), chosen()] == [4, 2, 2]
    policy.make_decision_for_running_worker_group()
    assert chosen() == 4
    monkeypatch.setattr(elastic, "room", lambda each, in_use: 1)
    monkeypatch.setattr(elastic, "AGAIN", 0)
    assert chosen() is None


@pytest.mark.parametrize(("free", "grows"), [([0, 1, 1, 0, 1], [False, True, False, False, True])])
def test_room_for_more_workers_is_told_once(free: list[int], grows: list[bool], monkeypatch: pytest.MonkeyPatch):
    growth = Growth(4, {"CPU": 1})
    monkeypatch.setattr(elastic, "room", lambda each: free.pop(0))
    assert [growth.is_possible(1) for _ in grows] == grows
    assert not growth.is_possible(4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without cores; the tests add nodes of one core each, and take them away."""
    os.environ.update(SETTINGS)
    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[list[Any]]:
    """Two nodes that are new."""
    added = [cluster.add_node(**NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    yield added
    ray.shutdown()
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)


def started(run: Run, directory: Path) -> Record:
    return Record.create(directory, name=directory.name, experiment="test", params={}, run=run.file())


def followed(cluster: Cluster, run: Run, directory: Path, told: Callable[[Report], None]) -> Record:
    """Train on the cluster and tell of every report."""
    record = started(run, directory)
    with closing(train_on_workers(run, directory, address=str(cluster.address))) as reports:
        for report in reports:
            told(report)
    assert record.state == "finished"
    return Record.open(directory)


def assert_alike(one: Record, two: Record) -> None:
    """Compare as two workers are compared with one (tests/ray_backend/test_workers.py)."""
    for a, b in zip(one.metrics(), two.metrics(), strict=True):
        assert (a["step"], a["epoch"]) == (b["step"], b["epoch"])
        for name in ("loss", "std", "rank", "alignment"):
            assert b[name] == pytest.approx(a[name], rel=1e-3), name
    assert_same_weights(one.directory, two.directory)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_workers_and_again_with_all(cluster: Cluster, nodes: list[Any], tmp_path: Path):
    run, place, found = a_run("workers=2", "min_workers=1", "epochs=6"), tmp_path / "elastic", list[int]()

    def told(report: Report) -> None:
        if not report.epoch_ended:
            return
        found.append(report.progress.epoch)
        if found == [1, 2]:
            beats = beats_in(place)
            cluster.remove_node(nodes[0], allow_graceful=False)
            for beat in beats:
                if beat.node == nodes[0].node_id:
                    os.kill(beat.pid, signal.SIGKILL)  # with its machine, not seconds later
        if found[-1] > 2 and len(cluster.worker_nodes) == 1:
            assert [beat.rank for beat in beats_in(place)] == [0], "who is gone does not hang"
            cluster.add_node(**NODE)
            eventually(lambda: ray.available_resources().get("CPU") == 1)

    record = followed(cluster, run, place, told)
    alone = started(run, tmp_path / "alone")
    list(recorded(train(a_run("epochs=6"), alone.directory), alone))
    assert_alike(alone, record)
    first, second = record.tags[CHANGES].split("; ")
    assert first.startswith(f"from 2 to 1 at step {2 * STEPS}, ")
    assert second.startswith("from 1 to 2 at step ")
    rows = [row for row in record.read(file=SYSTEM)[0] if "system/workers" in row["metrics"]]
    assert [row["metrics"]["system/workers"] for row in rows] == [1, 2]
    for row, change in zip(rows, (first, second), strict=True):
        assert f"at step {row['step']}, " in change
    assert rows[1]["step"] >= 3 * STEPS, "to grow, it ends after what is saved"


def eventually(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "drained"])
def test_a_group_with_notice_saves_and_goes_on_elsewhere(how: str, cluster: Cluster, nodes: list[Any], tmp_path: Path):
    """Nothing is trained twice, though no epoch ends with a checkpoint."""
    run, place = a_run("workers=2", "min_workers=1", "epochs=40", "checkpoints.every_epochs=40"), tmp_path / "noticed"
    epochs, given = list[int](), list[float]()

    def told(report: Report) -> None:
        epochs.extend([report.progress.epoch] if report.epoch_ended else [])
        if given or epochs[-1:] != [2]:
            return
        given.append(time.time())
        if how == "SIGTERM":
            os.kill(beats_in(place)[1].pid, signal.SIGTERM)
        else:
            gcs: Any = global_worker.gcs_client  # pyright: ignore[reportAttributeAccessIssue]
            gcs.drain_node(nodes[0].node_id, PREEMPTION, "spot", int((time.time() + NOTICE) * 1000), timeout=10)

    record = followed(cluster, run, place, told)
    assert epochs == list(range(1, 41))
    saved = next(path for path in checkpoints(place) if step_of(path) >= 2 * STEPS)
    seconds = saved.stat().st_mtime - given[0]
    print(f"{how}: {seconds:.1f} s from the notice to the checkpoint at step {step_of(saved)}")
    assert step_of(saved) < 40 * STEPS
    assert seconds < NOTICE
    assert (CHANGES in record.tags) == (how == "drained")

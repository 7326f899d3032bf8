"""Runs and images at addresses: a run continued elsewhere, a sweep over nodes that share nothing but a bucket."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml
from commands import start, until, wait_for_the_end
from ray.cluster_utils import Cluster

import eagleray
from buckets import SECRET, Bucket
from command_line import command_line
from eagleray.config import Run, Sweep, load_run, validated
from eagleray.config.search_points import points
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import located
from eagleray.loop import train
from eagleray.ray_backend.cluster import SETTINGS
from eagleray.ray_backend.probe import check_nodes
from eagleray.runs.record import Record
from eagleray.storage.mirror import run_at_hand

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN = {"data": {"limit": 160}, "batch_size": 40, "epochs": 3, "encoder": {"width": 4}, "threads": 1, "device": "cpu",
       "precision": "fp32", "evaluate": {"linear": {"when": "never"}, "test": False}}  # fmt: skip
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
WORDS = ["data.limit=160", "batch_size=40", "epochs=40", "encoder.width=4", "threads=1", "device=cpu",
         "evaluate.linear.when=never", "evaluate.test=false", "tracking.runs=s3://lab/runs",
         "tracking.uri=http://127.0.0.1:1"]  # fmt: skip
# What has changed is sent every few seconds, in which these epochs could all be over.
OFTEN = "from eagleray.app.cli import main; from eagleray.storage import mirror; mirror.EVERY = 0.1; main()"


def test_a_run_whose_machine_is_lost_continues_on_another(
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with subprocess.Popen([sys.executable, "-c", OFTEN, "train", *WORDS], stdout=subprocess.PIPE, text=True) as first:
        end = time.monotonic() + 300
        while not any("checkpoints" in name for name in bucket.names("runs")):
            assert time.monotonic() < end
            assert first.poll() is None, first.stdout and first.stdout.read()
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
    shutil.rmtree(tmp_path / "here")
    bucket.on("there")
    ended = command_line(monkeypatch, capsys)("train", *WORDS, "--resume")
    assert ended.code == 0, ended.err
    assert "s3://lab/runs/eagleray/" in ended.out
    (name,) = bucket.own.ls("lab/runs/eagleray", detail=False)
    bucket.on("a third")
    directory = run_at_hand(f"s3://{name}")
    measured = command_line(monkeypatch, capsys)("evaluate", f"s3://{name}")
    assert measured.code == 0, measured.err
    *_, alone = train(load_run(None, WORDS), tmp_path / "alone")
    rows = Record.open(directory).metrics()
    assert [row["epoch"] for row in rows] == list(range(1, 41))
    assert {name: rows[-1][name] for name in ("loss", "knn")} == {n: alone.metrics[n] for n in ("loss", "knn")}
    assert len([name for name in bucket.names("runs") if "checkpoints" in name]) == 2, (
        "what is pruned here is pruned there"
    )
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in ended.out + ended.err


@pytest.fixture
def cluster(bucket: Bucket, tmp_path: Path) -> Iterator[Cluster]:
    """A head and a node of one core each, which share no folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        nodes.add_node(**NODE, env_vars={"XDG_CACHE_HOME": str(tmp_path / "there")})
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def test_a_sweep_over_nodes_that_share_a_bucket_alone_ends_as_on_one_machine(
    cluster: Cluster,
    bucket: Bucket,
    tmp_path: Path,
):
    for name in ("a", "b"):
        for number in range(40):
            bucket.own.pipe_file(f"lab/images/{name}/{number}.png", picture(number, name))
    data = {"name": "folder", "root": "s3://lab/images", "size": 8}
    run = {**RUN, "data": data, "batch_size": 16, "tracking": {"uri": "http://127.0.0.1:1", "runs": "s3://lab/runs"}}
    question = {"name": "s", "run": run, "search": "grid", "floor": ["pixels"], "seeds": 2,
                "vary": {"method.temperature": [0.1, 0.5]}}  # fmt: skip
    result = eagleray.sweep(question, address=str(cluster.address))
    sweep = validated(Sweep, question)
    trials = {record.name: record for record in Record.open(result.directory).children()}
    nodes = {str(path.relative_to(tmp_path)).split("/")[0] for path in tmp_path.rglob("checkpoints")}
    assert nodes == {"here", "there"}, "trials ran on both"
    for point in points(sweep):
        *_, last = train(point.run(sweep), tmp_path / "alone" / point.name)
        assert trials[point.name].state == "finished"
        assert trials[point.name].metrics()[-1]["loss"] == last.metrics["loss"]
    assert result.best is not None
    bucket.on("elsewhere")
    there = Record.open(run_at_hand(f"s3://lab/runs/s/{result.directory.name}"))
    assert {child.name: child.summary for child in there.children()} == {n: r.summary for n, r in trials.items()}
    assert not [name for name in bucket.names("runs") if "/ray/" in name or name.endswith("lock")]


def test_a_population_whose_machine_is_lost_goes_on_on_another(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = {**RUN, "epochs": 12, "tracking": {"uri": "http://127.0.0.1:1", "runs": "s3://lab/runs"}}
    question = {"name": "p", "run": run, "scheduler": "pbt", "trials": 2, "grace": 2, "floor": [],
                "vary": {"method.temperature": {"uniform": [0.1, 0.5]}}}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(question))
    words = ["sweep", str(tmp_path / "sweep.yaml")]

    def epochs() -> int:
        return sum(bucket.own.cat(f"lab/{name}").count(b"\n") for name in bucket.names() if "metrics.jsonl" in name)

    first = start(tmp_path, *words)
    until(lambda: epochs() >= 6 or first.poll() is not None, tmp_path, 0.2)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    wait_for_the_end(first.pid, tmp_path)
    shutil.rmtree(tmp_path / "here")
    bucket.on("there")
    (name,) = bucket.own.ls("lab/runs/p", detail=False)
    before = {record.name: record.metrics() for record in Record.open(run_at_hand(f"s3://{name}")).children()}
    assert max(map(len, before.values())) < 12
    ended = command_line(monkeypatch, capsys)(*words, "--resume")
    assert ended.code == 0, ended.err
    bucket.on("a third")
    for record in Record.open(run_at_hand(f"s3://{name}")).children():
        assert record.state == "finished"
        assert [row["epoch"] for row in record.metrics()] == list(range(1, 13))
        assert record.metrics()[: len(before[record.name])] == before[record.name], "what was sent is not done again"
        assert 0.08 <= record.metrics()[-1]["method.temperature"] <= 0.6


def test_a_run_whose_workers_share_a_bucket_alone_trains_as_one_process_does(
    cluster: Cluster, bucket: Bucket, tmp_path: Path
):
    *_, alone = train(validated(Run, RUN), tmp_path / "alone")
    tracking = {"uri": "http://127.0.0.1:1", "runs": "s3://lab/runs"}
    result = eagleray.train({**RUN, "workers": 2, "tracking": tracking}, address=str(cluster.address))
    assert result.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-3)
    assert result.metrics["knn"] == pytest.approx(alone.metrics["knn"], abs=0.02)
    bucket.on("elsewhere")
    there = Record.open(run_at_hand(f"s3://lab/runs/eagleray/{result.directory.name}"))
    assert there.state == "finished"
    assert [row["epoch"] for row in there.metrics()] == [1, 2, 3]
    left = {name.split("/")[3] for name in bucket.names("runs")}
    assert left & {"ray", "lock", ".workers"} == set()


def test_a_node_that_does_not_reach_the_bucket_is_named_before_anything_starts(cluster: Cluster, bucket: Bucket):
    cut = cluster.add_node(**NODE, env_vars={"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    ray.init(address=cluster.address, log_to_driver=False)
    directory = Path(located("s3://lab/runs/s/one"))
    with pytest.raises(ConfigError, match=r"s3://lab/runs/s/one cannot be used \(Could not connect.*\) \(on node .*\)"):
        check_nodes([load_run(None, [])], directory)
    cluster.remove_node(cut)
    check_nodes([load_run(None, [])], directory)
    assert bucket.names() == []


def picture(number: int, name: str) -> bytes:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("L", (8, 8), 3 * number + (name == "b")).save(file, "PNG")
    return file.getvalue()

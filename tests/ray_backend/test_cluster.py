"""An address that does not answer and machines that do not come end in a sentence."""

import os
import socket
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._common.utils import get_ray_address_file
from ray._private.utils import write_ray_address

import eagleray
from eagleray.contracts.errors import ConfigError
from eagleray.ray_backend import KNOWN, cluster
from eagleray.runs.preflight import cluster_at
from ray_sessions import two_cores


def test_an_address_must_answer(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            cluster_at(address)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        cluster_at("auto")
    for address in (f"127.0.0.1:{port}", "auto"):
        with pytest.raises(ConfigError, match=rf"no Ray answers at --address {address} \(connection refused\)"):
            cluster_at(address)
    monkeypatch.delenv("RAY_ADDRESS")
    for address in ("host", "host:port"):
        with pytest.raises(ConfigError, match="is not HOST:PORT"):
            cluster_at(address)


def test_a_ray_whose_inner_parts_may_be_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    pins = [each for each in (*project["dependencies"], *project["optional-dependencies"]["cluster"]) if "ray[" in each]
    assert [pin.partition("]")[2] for pin in pins] == [f">={KNOWN},<2.61"] * 2
    monkeypatch.delitem(sys.modules, "eagleray.ray_backend")
    monkeypatch.setattr(metadata, "version", lambda name, of=metadata.version: "2.61.0" if name == "ray" else of(name))
    settings = {"workers": 2, "tracking": {"runs": str(tmp_path / "runs")}}
    with pytest.raises(
        ConfigError, match=r"^Ray 2\.61\.0 is installed, .*: pip install 'ray\[train,tune\]==2\.60\.\*'$"
    ):
        eagleray.train(settings)
    assert not (tmp_path / "runs").exists()


def test_auto_is_the_cluster_of_ray_start_and_never_what_another_sweep_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match="--address auto finds no cluster: begin one with `ray start`"):
        cluster_at("auto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        write_ray_address(place := f"127.0.0.1:{server.getsockname()[1]}", str(tmp_path / "ray"))
        assert get_ray_address_file(None) == str(tmp_path / "ray/ray_current_cluster")
        assert cluster_at("auto") == place
    with pytest.raises(ConfigError, match=r"no Ray answers at --address auto \(connection refused\)"):
        cluster_at("auto")


def test_an_address_that_is_silent_is_given_up_soon(monkeypatch: pytest.MonkeyPatch):
    def connect(place: Any, timeout: float) -> None:
        assert timeout <= 20
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ConfigError, match=r"no Ray answers at --address 10\.0\.0\.1:6379 \(timed out\)"):
        cluster_at("10.0.0.1:6379")


def test_machines_are_asked_for_and_waited_for_but_not_forever(monkeypatch: pytest.MonkeyPatch):
    asked, resources = [], [{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}]
    monkeypatch.setattr(cluster, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    monkeypatch.setattr(
        cluster.ray, "cluster_resources", lambda: resources.pop(0) if len(resources) > 1 else resources[0]
    )
    cluster.wait_for_room(2, 1, 1)
    assert asked == [[{"CPU": 1, "GPU": 1}] * 2, []]
    monkeypatch.setattr(cluster, "ROOM", 0)
    with pytest.raises(ConfigError, match=r"64 workers with 1 CPU each need more than the 8 CPU .* has joined"):
        cluster.wait_for_room(64, 1, 0)
    assert asked[-1] == []

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster.ray, "cluster_resources", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.wait_for_room(2, 1, 1)
    assert asked[-1] == []  # the cluster does not keep the machines


@pytest.fixture
def address() -> Iterator[str]:
    with two_cores():
        yield ray.get_runtime_context().gcs_address


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_of_one_worker_trains_where_the_address_says(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))

    def here(*_: Any, **__: Any) -> None:
        raise AssertionError("it trains in this process")

    monkeypatch.setattr("eagleray.app.launch.train", here)
    settings = {
        "data": {"limit": 64}, "batch_size": 16, "epochs": 1, "encoder": {"width": 4},
        "tracking": {"uri": "http://127.0.0.1:1", "runs": str(tmp_path)},
    }  # fmt: skip
    began = time.monotonic()
    result = eagleray.train(settings, address=address)
    assert time.monotonic() - began < 200
    assert result.metrics["knn"] > 0


LISTENERS = """
from pathlib import Path
import ray
import psutil  # Ray brings it
from eagleray.ray_backend.cluster import connected
with connected(None):
    ours = psutil.Process()
    for process in [ours, *ours.children(recursive=True)]:
        for each in process.net_connections("inet"):
            if each.status == "LISTEN":
                print(each.laddr.ip)
print(oct((Path.home() / ".ray/auth_token").stat().st_mode & 0o777), len((Path.home() / ".ray/auth_token").read_text()))
"""


@pytest.mark.slow
def test_a_ray_of_this_machine_listens_on_loopback_alone_and_its_token_is_private(tmp_path: Path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", LISTENERS]
    done = subprocess.run(command, env={**kept, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120)
    *listening, token = done.stdout.splitlines()
    assert len(listening) >= 4, done.stderr
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert token == "0o600 64"


@pytest.mark.slow
def test_a_signal_after_ray_has_ended_still_interrupts():
    """Ray leaves SIGTERM with its default, which would end a sweep without a word while it writes its report."""
    program = """
        import os, signal, time
        from eagleray.ray_backend.cluster import connected
        from eagleray.runs.signals import as_interrupts
        as_interrupts()
        with connected(None):
            signal.signal(signal.SIGINT, lambda *_: None)  # as Tune does
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except KeyboardInterrupt:
                print("interrupted")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["interrupted"] * 2, done.stderr

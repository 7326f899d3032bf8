"""A cluster with a token: who is let in, and jobs that outlive the terminal that sent them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.runs.record import Record
from ray_heads import TOKEN, Head, head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

RUN = "{data: {name: digits, limit: 80}, batch_size: 40, epochs: 1, encoder: {name: convnet, width: 4}, threads: 1}"
SWEEP = f"name: flips\nrun: {RUN}\nvary: {{augment.flip: [0, 0.5]}}\nsearch: grid\nfloor: []\n"
METHOD = '''"""A method."""
from eagleray_methods.simclr import SimCLR


class Fancy(SimCLR):
    """SimCLR by another name."""
'''
CONNECT = """
import sys
from eagleray.contracts.errors import ConfigError
from eagleray.ray_backend.cluster import connected
try:
    with connected(sys.argv[1]):
        print("connected")
except ConfigError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head(cpus=2) as started:
        yield started


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder to submit from, with a method of its own, and a home beside it."""
    (tmp_path / "lab/my_lab").mkdir(parents=True)
    (tmp_path / "lab/my_lab/__init__.py").touch()
    (tmp_path / "lab/my_lab/fancy.py").write_text(METHOD)
    (tmp_path / "lab/fancy.py").write_text(METHOD)
    (tmp_path / "lab/flips.yaml").write_text(SWEEP)
    (tmp_path / "lab/.env").write_text("SECRET=1")
    return tmp_path / "lab"


def environment(home: Path, **more: str) -> dict[str, str]:
    dropped = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"} | {name for name in os.environ if name.startswith("RAY_AUTH")}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "HOME": str(home), **more}


def begun(lab: Path, *words: str, **more: str) -> "subprocess.Popen[str]":
    """Start `eagleray` with the cluster's token."""
    command = [sys.executable, "-m", "eagleray", *words]
    own = environment(lab.parent, **{"RAY_AUTH_TOKEN": TOKEN, **more})
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=lab, env=own, stdout=pipe, stderr=pipe, text=True)


def answer(lab: Path, *words: str) -> str:
    out, err = (process := begun(lab, *words)).communicate(timeout=200)
    assert process.returncode == 0, out + err
    return out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "asks for a token: put the cluster's token into ~/.ray/auth_token"),
        ({"RAY_AUTH_TOKEN": "wrong"}, "does not accept the token found here"),
        ({"RAY_AUTH_MODE": "token"}, "RAY_AUTH_MODE=token, but there is no token here"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": TOKEN}, "and set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN": TOKEN}, "connected"),
    ],
)
def test_only_who_has_the_token_is_let_in(cluster: Head, tmp_path: Path, given: dict[str, str], told: str):
    command = [sys.executable, "-c", CONNECT, cluster.gcs]
    began = time.monotonic()
    done = subprocess.run(command, env=environment(tmp_path, **given), capture_output=True, text=True, timeout=60)
    assert told in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
    assert time.monotonic() - began < 15, "Ray alone tries for 20 seconds"


def test_a_sweep_is_sent_followed_and_its_result_read(cluster: Head, lab: Path):
    at, runs = ("--address", cluster.dashboard), lab.parent / "shared/runs"
    refused = begun(lab, "status", *at, RAY_AUTH_TOKEN="wrong")
    assert "does not accept the token" in refused.communicate(timeout=60)[1]
    said = answer(lab, "submit", "flips.yaml", "method=my_lab.fancy", f"tracking.runs={runs}", *at)
    for line in ("my_lab/fancy.py", "left out  .env", "eagleray/ (", "sent as flips-", "[2/2]", "succeeded"):
        assert line in said
    assert said.index("left out") < said.index("sent as") < said.index("[2/2]")
    (sweep,) = runs.glob("flips/*")
    record = Record.open(sweep)
    assert record.state == "finished"
    assert [child.state for child in record.children()] == ["finished"] * 2
    assert all(child.summary["knn"] > 0.1 for child in record.children())
    assert {child.file()["method"]["name"] for child in record.children()} == {"my_lab.fancy"}


def test_a_job_outlives_its_terminal_and_is_stopped_so_that_it_can_be_resumed(cluster: Head, lab: Path):
    at, runs = ("--address", cluster.dashboard), lab.parent / "shared/runs"
    settings = ["data.limit=80", "batch_size=40", "epochs=4000", "encoder.width=4", "threads=1"]
    terminal = begun(lab, "submit", "method=./fancy.py", *settings, f"tracking.runs={runs}", *at)
    job = re.search(r"sent as (\S+)", lines_until("\ndata: ", terminal))[1]  # type: ignore[index]
    terminal.send_signal(signal.SIGHUP)  # the window was closed
    terminal.communicate(timeout=30)

    again = begun(lab, "logs", "-f", job, *at)
    lines_until("\ndata: ", again)
    again.send_signal(signal.SIGINT)
    told = again.communicate(timeout=30)[1]
    assert again.returncode == 130
    assert f"goes on, only its log is no longer followed. To follow: eagleray logs -f {job} --address" in told
    assert f"To stop: eagleray stop {job} --address" in told
    assert re.search(rf"{job} +running .*train fancy", answer(lab, "status", *at))

    answer(lab, "stop", job, *at)
    end = time.monotonic() + 90
    while "stopped" not in answer(lab, "status", job, *at):
        assert time.monotonic() < end
    (run,) = runs.glob("eagleray/*")
    while Record.open(run).state == "running":  # Ray may call the job stopped while its last files are written
        assert time.monotonic() < end, answer(lab, "logs", job, *at)
        time.sleep(0.2)
    assert Record.open(run).state == "stopped"
    log = answer(lab, "logs", job, *at)
    assert "nothing is lost" in log
    assert "Traceback" not in log


def lines_until(text: str, process: "subprocess.Popen[str]") -> str:
    """Return what a process prints up to a text."""
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen

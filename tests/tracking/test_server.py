"""A server of MLflow's pages never outlives the process that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eagleray.contracts.errors import ConfigError
from eagleray.tracking import server
from eagleray.tracking.store import connect

pytestmark = pytest.mark.slow


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_process_leaves_no_server(tmp_path: Path):
    """The server is a shell with a child, as MLflow's is a command with a server below it."""
    note = tmp_path / "pids"
    server = f"sleep 600 & echo $$ $! > {note}.part; mv {note}.part {note}; wait"
    program = f"from eagleray.tracking.server import _serve; _serve(['sh', '-c', {server!r}], '')"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        until(note.exists)
        pids = [int(pid) for pid in note.read_text().split()]
        assert all(map(is_alive, pids))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    until(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_an_interrupt_between_the_server_and_its_guard_leaves_no_server(tmp_path: Path, sent: str):
    note = tmp_path / "pids"
    server = f"echo $$ > {note}.part; mv {note}.part {note}; sleep 600"
    program = f"""
import os, pathlib, signal, time
from eagleray.tracking import server
guard = server._guard
def pressed(group):
    while not pathlib.Path({str(note)!r}).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.{sent})
    time.sleep(0.1)
    return guard(group)
server._guard = pressed
server._serve(['sh', '-c', {server!r}], '')
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "MLflow's server is stopped." in done.stdout
    until(lambda: not is_alive(int(note.read_text())))


def test_pages_for_other_machines_need_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, served = f"sqlite:///{tmp_path}/mlflow.db", list[list[str]]()
    connect(store)
    monkeypatch.setattr(server, "_serve", lambda command, uri: served.append(command))
    monkeypatch.setattr(server, "newest_pages", lambda *_: {"all": "http://pages"})
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: name)  # MLflow's login is installed
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.2", "nowhere.invalid"):
        with pytest.raises(ConfigError, match=f"--host {host} would show the runs to everyone .*or add --insecure"):
            server.ui(store, host)
    assert served == []
    with monkeypatch.context() as patch:
        patch.setattr(server, "_refuse_taken", lambda *_: None)
        for host, insecure in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
            server.ui(store, host, insecure=insecure)
            assert "basic-auth" not in served.pop()
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a-long-password")
        server.ui(store, "0.0.0.0")
        assert served.pop()[-4:-2] == ["--app-name", "basic-auth"]
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a-long-password")
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs MLflow's login: pip install 'eagleray"):
        server.ui(store, "0.0.0.0")

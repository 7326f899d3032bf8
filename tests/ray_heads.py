"""A Ray that takes jobs, as `ray start --head` begins one, with a token and ports of its own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv/cluster/bin/python"  # the dashboard is in an environment of its own (Makefile)
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    """Where a Ray answers."""

    gcs: str
    dashboard: str


@contextmanager
def head(cpus: int) -> Iterator[Head]:
    """Start a head with a dashboard, and end it with all of its processes."""
    place = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets below it: a longer path is too long for them
    gcs, dashboard, agent, client = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}  # Ray's own warn
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0",
                    "HOME": str(place), "PATH": f"{PYTHON.parent}:{os.environ['PATH']}"}  # fmt: skip
    command = [PYTHON, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
               "--include-dashboard=true", f"--port={gcs}", f"--dashboard-port={dashboard}",
               f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--num-cpus={cpus}",
               f"--temp-dir={place}", f"--object-store-memory={100 * 2**20}"]  # fmt: skip
    with open(place / "head.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until_answers(f"http://127.0.0.1:{dashboard}/api/jobs/", place / "head.log")
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}")
    finally:
        process.send_signal(signal.SIGTERM)  # `--block` ends all that it began
        with suppress(subprocess.TimeoutExpired):  # on a busy machine it may take longer
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(place, ignore_errors=True)


def until_answers(url: str, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    while True:
        try:
            urllib.request.urlopen(asked, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]

"""Show a store in MLflow's own pages."""

import os
import shlex
import signal
import socket
import subprocess
import sys

from eagleray.contracts.errors import ConfigError
from eagleray.runs.signals import as_interrupts
from eagleray.tracking.store import PATIENCE, artifacts_beside, connect, patient, store_uri, without_password


def ui_base(uri: str | None = None, host: str = "127.0.0.1", port: int = 5000) -> str:
    """Return the address of MLflow's pages.

    It is the server's own, or the one that `ui` uses.
    """
    uri = without_password(store_uri(uri))
    return uri.rstrip("/") if uri.startswith("http") else f"http://{host}:{port}"


def ui_command(uri: str | None = None) -> str:
    """Return the command that shows a store's pages."""
    uri = store_uri(uri)
    return "eagleray ui" if uri == store_uri() else f"eagleray ui {shlex.quote(f'tracking.uri={uri}')}"


def ui(uri: str | None = None, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Serve MLflow's pages on a store until Ctrl-C.

    If the store is a server, print the address of its pages.

    Raises:
        ConfigError: the port is taken, or the server does not start.
    """
    uri = store_uri(uri)
    base = ui_base(uri, host, port)
    if uri.startswith("http"):
        print(f"MLflow's pages are at {base}")
        return
    _refuse_taken(host, port)
    with patient():
        connect(uri)  # creates a new SQLite store under our lock; MLflow's server does not lock
    print(f"MLflow's pages will be at {base} in a few seconds; Ctrl-C stops the server.", flush=True)
    _serve(_command(uri, host, port))


def _command(uri: str, host: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host]
    command += ["--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    artifacts = artifacts_beside(uri)
    return [*command, "--artifacts-destination", artifacts] if artifacts else command


def _serve(command: list[str]) -> None:
    # Without the second setting the server leaves job processes behind.
    environment = {**PATIENCE, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    as_interrupts()
    server = subprocess.Popen(command, env=environment, start_new_session=True)  # a process group, to be ended together
    guard = _guard(server.pid)
    try:
        if code := server.wait():
            raise ConfigError(f"MLflow's server ended with exit code {code}; see its output for the reason.")
    except KeyboardInterrupt:
        print("\nMLflow's server is stopped.")
    finally:
        _end_group(server)
        guard.kill()
        guard.communicate()


def _guard(group: int) -> "subprocess.Popen[bytes]":
    """Start a process that ends a group if this process is killed.

    It waits for the end of its input, which only this process holds open.
    """
    command = ["sh", "-c", f"read gone; kill -TERM -{group}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _refuse_taken(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConfigError(f"{host}:{port} cannot be used ({why}); choose another port.") from None


def _end_group(server: "subprocess.Popen[bytes]") -> None:
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        try:
            os.killpg(server.pid, number)
            server.wait(patience)
        except ProcessLookupError:  # it has ended
            return
        except subprocess.TimeoutExpired:
            continue

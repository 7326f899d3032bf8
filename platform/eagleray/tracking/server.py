"""Show a store in MLflow's own pages."""

import importlib.util
import ipaddress
import json
import os
import platform
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import write
from eagleray.runs.signals import as_interrupts, held_back
from eagleray.tracking.front import newest_pages
from eagleray.tracking.links import RUNS, view_key, view_url
from eagleray.tracking.store import PATIENCE, artifacts_beside, sqlite_path, store_uri
from eagleray.tracking.sync_state import page_of

HOST, PORT = "127.0.0.1", 5000


def ui_base(uri: str | None = None) -> str:
    """Return the address of MLflow's pages.

    It is the server's own, that of a running `ui`, or the one that `ui` uses if nothing else is asked for.
    """
    uri = store_uri(uri)
    return served_at(uri) or f"http://{HOST}:{PORT}"


def served_at(uri: str) -> str | None:
    """Return the address at which a store is served now.

    A running `ui` notes it next to the store. None: nothing is known to serve it.
    """
    if uri.startswith("http"):
        return without_password(uri).rstrip("/")
    try:
        note = json.loads(_note(uri).read_text())
        os.kill(note["pid"], 0)
    except (OSError, ValueError):  # no note, or one that a killed process left
        return None
    return note["base"] if note["node"] == platform.node() else None


def page_url(directory: Path, uri: str | None = None) -> str | None:
    """Return the address of the page that shows a sweep or a run.

    None: it was not sent to this store.
    """
    page = page_of(directory, store_uri(uri))
    return page and f"{ui_base(uri)}/#{page}"


def charts_url(experiment_id: str, sweep: str | None, uri: str | None = None) -> str:
    """Return the address of the charts of a sweep.

    Args:
        experiment_id: of its runs.
        sweep: the key of its record (MLflow's tag `eagleray.key`); None: the runs outside sweeps.
        uri: of the store.
    """
    return view_url(ui_base(uri), experiment_id, view_key(sweep) if sweep else RUNS, charts=True)


def ui_command(uri: str | None = None) -> str:
    """Return the command that shows a store's pages; a password is to be added."""
    uri = store_uri(uri)
    return (
        "eagleray ui" if uri == store_uri() else f"eagleray ui {shlex.quote(f'tracking.uri={without_password(uri)}')}"
    )


def ui(uri: str | None = None, host: str = HOST, port: int = PORT, *, insecure: bool = False) -> None:
    """Serve MLflow's pages on a store until Ctrl-C.

    The addresses of the newest experiments are printed. If the store is a server, that is all. With
    MLFLOW_AUTH_ADMIN_PASSWORD, MLflow asks for the user admin and that password.

    Args:
        uri: of the store.
        host: address to listen on.
        port: to listen on.
        insecure: other machines need no password.

    Raises:
        ConfigError: there is no such store, everyone could reach it, the port is taken, or the server does not start.
    """
    uri = store_uri(uri)
    path = sqlite_path(uri)
    if path and not path.exists():
        raise ConfigError(
            f"There is no MLflow store at {path}: start `eagleray ui` where runs were started, or name their store "
            "with tracking.uri=sqlite:///FILE.db; `eagleray sync` makes one from the directories of runs."
        )
    if uri.startswith("http"):
        _list(uri, without_password(uri).rstrip("/"))
        return
    _refuse_open(host, insecure=insecure)
    _refuse_taken(host, port)
    base = f"http://{host}:{port}"
    _list(uri, base)
    print("The server answers in a few seconds; Ctrl-C stops it.", flush=True)
    with _noted(uri, base):
        _serve(_command(uri, host, port), uri)


def _list(uri: str, base: str) -> None:
    pages = newest_pages(uri, base)
    width = max(map(len, pages))
    print("MLflow's pages:")
    for name, url in pages.items():
        print(f"  {name:<{width}}  {url}")


@contextmanager
def _noted(uri: str, base: str) -> Iterator[None]:
    """Note next to a SQLite store where it is served."""
    if sqlite_path(uri) is None:
        yield
        return
    path = _note(uri)
    write(path, json.dumps({"base": base, "pid": os.getpid(), "node": platform.node()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _note(uri: str) -> Path:
    path = sqlite_path(uri)
    if path is None:
        raise FileNotFoundError("only a SQLite store has a place for it")
    return path.with_name(f"{path.name}.served")


def _command(uri: str, host: str, port: int) -> list[str]:
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", host]
    command += ["--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning --app-dir /"]
    command += ["--app-name", "basic-auth"] * _has_password()
    artifacts = artifacts_beside(uri)
    return [*command, "--artifacts-destination", artifacts] if artifacts else command


def _serve(command: list[str], uri: str) -> None:
    environment = {
        **PATIENCE,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else the server leaves job processes behind
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),  # signs its forms
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # not on the command line, which everybody may read: it may hold a password
        "PYTHONSAFEPATH": "1",  # with `-P` and `--app-dir`: import nothing from the working directory
    }
    as_interrupts()
    with ExitStack() as ends:
        try:
            with held_back():  # between the server's start and its guard's, a Ctrl-C would leave it behind
                server = subprocess.Popen(command, env=environment, start_new_session=True)  # in a group, to be ended
                ends.callback(_end, server, _guard(server.pid))
            if code := server.wait():
                raise ConfigError(f"MLflow's server ended with exit code {code}; see its output for the reason.")
        except KeyboardInterrupt:
            print("\nMLflow's server is stopped.")


def _end(server: "subprocess.Popen[bytes]", guard: "subprocess.Popen[bytes]") -> None:
    _end_group(server)
    guard.kill()  # last: until then it ends the group, should somebody press Ctrl-C again
    guard.communicate()


def _guard(group: int) -> "subprocess.Popen[bytes]":
    """Start a process that ends a group if this process is killed.

    It waits for the end of its input, which only this process holds open.
    """
    command = ["sh", "-c", f"read gone; kill -TERM -{group}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _has_password() -> bool:
    return bool(os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"))


def _refuse_open(host: str, *, insecure: bool) -> None:
    """Refuse to show the runs to everyone."""
    if _has_password() and importlib.util.find_spec("flask_wtf") is None:
        raise ConfigError("MLFLOW_AUTH_ADMIN_PASSWORD needs MLflow's login: pip install 'eagleray[cluster]'")
    if not (insecure or _has_password() or _is_loopback(host)):
        raise ConfigError(
            f"--host {host} would show the runs to everyone who reaches this machine, and let them change them: set "
            "MLFLOW_AUTH_ADMIN_PASSWORD, which MLflow then asks for (user admin), or add --insecure"
        )


def _is_loopback(host: str) -> bool:
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(each).is_loopback for each in found)


def _refuse_taken(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            remedy = "correct --host" if isinstance(error, socket.gaierror) else "choose another --port"
            raise ConfigError(f"{host}:{port} cannot be used ({why}); {remedy}") from None


def _end_group(server: "subprocess.Popen[bytes]") -> None:
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        try:
            os.killpg(server.pid, number)
            server.wait(patience)
        except ProcessLookupError:  # it has ended
            return
        except subprocess.TimeoutExpired:
            continue

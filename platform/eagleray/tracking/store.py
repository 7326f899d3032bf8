"""An MLflow store: its URI, opening and errors.

A store is a URI: `sqlite:///FILE.db` (opened directly), `http(s)://…` (a server), or any other that MLflow knows.
"""

import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORES = re.compile(r"https?://[^/]|sqlite:///.|(postgresql|mysql|mssql)(\+\w+)?://.|databricks(-uc)?(://|$)")

# Used unless the user has set them: a server that does not answer costs ten seconds instead of eight attempts of two
# minutes, importing mlflow starts no thread that reports usage to its developers, and nothing is drawn in the terminal.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def store_uri(chosen: str | None = None) -> str:
    """Return the URI of the store to use.

    It is `chosen`, else MLFLOW_TRACKING_URI, else mlflow.db in the working directory.

    Raises:
        ConfigError: it is a folder, or no address of a kind that MLflow knows (MLflow 3 stores no runs in plain files).
    """
    uri = chosen or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not STORES.match(uri):
        shown = without_password(uri.rpartition("@")[2])
        raise ConfigError(
            f"{shown!r} (tracking.uri or MLFLOW_TRACKING_URI) is not an MLflow store; "
            "use sqlite:///FILE.db, or a server's http://HOST:PORT."
        )
    path = sqlite_path(uri)
    return f"sqlite:///{path}" if path else uri


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def artifacts_beside(uri: str) -> str | None:
    """Return where a directly opened store keeps files.

    MLflow would use the current working directory.
    """
    path = sqlite_path(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None


def connect(uri: str) -> "MlflowClient":
    """Return MLflow's client.

    A missing SQLite store is created with its folder.
    """
    from mlflow import MlflowClient

    # This logger prints each migration of a new store, and tracebacks of errors that we report in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    path = sqlite_path(uri)
    if path is None:
        return MlflowClient(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f"{path.name}.lock")):  # if two create a store at once, one fails
        return MlflowClient(uri)


def paged(search: Callable[..., Any], *arguments: Any, **settings: Any) -> Iterator[Any]:
    """Yield all that one of MLflow's searches finds, which answers page by page."""
    token = None
    while token != "":
        page = search(*arguments, page_token=token, **settings)
        yield from page
        token = page.token or ""


class _Patience:
    """Counts the threads that are inside `patient`: the first one sets PATIENCE, the last one takes it back."""

    def __init__(self) -> None:
        self.lock, self.inside, self.added = threading.Lock(), 0, list[str]()

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.added = [name for name in PATIENCE if name not in os.environ]
                os.environ.update({name: PATIENCE[name] for name in self.added})
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                for name in self.added:
                    os.environ.pop(name, None)


_patience = _Patience()


@contextmanager
def patient() -> Iterator[None]:
    """Set PATIENCE for the calls inside the block, in any thread."""
    _patience.enter()
    try:
        yield
    finally:
        _patience.leave()


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock between processes.

    Raises:
        BlockingIOError: another process has it, and `wait` is false.
    """
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def answered(error: Exception) -> bool:
    """Return whether the store answered with an error.

    If it did not answer, sending other runs will fail too.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == "mlflow":
        return False
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, MlflowException) and not isinstance(error, RestException):
        return error.error_code not in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
    return True


def reason(error: Exception) -> str:
    """Return an error in a few words."""
    if isinstance(error, BlockingIOError):
        return "another process is sending it"
    text = without_password(str(error)) or type(error).__name__
    if "timeout exception" in text or "timed out" in text:
        return "it does not answer in time"
    if cause := re.search(r"\[Errno -?\d+\] ([\w ]+)", text):
        return cause[1].lower()
    return text.splitlines()[0][:200]

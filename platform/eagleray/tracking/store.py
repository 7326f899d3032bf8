"""An MLflow store: where it is, how it is opened, and what its errors mean.

A store is a URI: `sqlite:///FILE.db` (opened directly), `http(s)://…` (a server), or what else MLflow knows.
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eagleray.contracts.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")

# Only where the user has not set them: a server that hangs costs ten seconds and not eight attempts of two
# minutes, and importing mlflow starts no thread that reports usage to its makers.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def store_uri(given: str | None = None) -> str:
    """The store to use: the one given, else MLFLOW_TRACKING_URI, else mlflow.db in the working directory.

    Raises:
        ConfigError: a plain folder or an unknown scheme (MLflow 3 keeps no runs in plain files).
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if re.split(r"\+|:", uri)[0] not in SCHEMES:
        raise ConfigError(
            f"{uri!r} (tracking.uri or MLFLOW_TRACKING_URI) is no MLflow store; "
            "write sqlite:///FILE.db, or a server's http://HOST:PORT."
        )
    path = sqlite_path(uri)
    return f"sqlite:///{path}" if path else uri


def without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def artifacts_beside(uri: str) -> str | None:
    """Where a store opened directly keeps files; MLflow would take the working directory of the moment."""
    path = sqlite_path(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None


def connect(uri: str) -> "MlflowClient":
    """MLflow's client. A SQLite store is made if it is not there, with its folder."""
    from mlflow import MlflowClient

    # This logger announces each migration of a fresh store, and prints tracebacks of errors we say in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    path = sqlite_path(uri)
    if path is None:
        return MlflowClient(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f"{path.name}.lock")):  # of two that make one fresh store at once, one fails
        return MlflowClient(uri)


@contextmanager
def patient() -> Iterator[None]:
    """Sets PATIENCE for the calls inside, and takes it back."""
    added = {name: value for name, value in PATIENCE.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a lock between processes. Raises BlockingIOError if another has it and `wait` is false."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def answered(error: Exception) -> bool:
    """Whether the store said no, as opposed to saying nothing: then the next run would fare no better."""
    if isinstance(error, ModuleNotFoundError) and error.name == "mlflow":
        return False
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, MlflowException) and not isinstance(error, RestException):
        return error.error_code not in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
    return True


def reason(error: Exception) -> str:
    """An error in a few words."""
    if isinstance(error, BlockingIOError):
        return "another process is sending it"
    text = without_password(str(error)) or type(error).__name__
    if "timeout exception" in text or "timed out" in text:
        return "it does not answer in time"
    if cause := re.search(r"\[Errno -?\d+\] ([\w ]+)", text):
        return cause[1].lower()
    return text.splitlines()[0][:200]

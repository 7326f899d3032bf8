"""Read experiments from MLflow."""

import difflib
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.tracking.store import connect, paged, patient, reason, sqlite_path, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


def rows(name: str, uri: str | None = None) -> list[dict[str, Any]]:
    """Read runs from MLflow, oldest first.

    `name` is an experiment's, or that or the ID of one run, which is read with its children.

    Each is {"name", "run_id", "parent" (a run_id or None), "state", "tags", "params" (as strings), "metrics" (their
    last values), "images" (their digest, or None), "experiment_id", "created" (ms since 1970)}.

    Raises:
        ConfigError: no such store, no such experiment or run (with the nearest names), or the server does not answer.
    """
    uri = store_uri(uri)
    path = sqlite_path(uri)
    if path and not path.exists():
        raise ConfigError(f"There is no MLflow store at {path}; `eagleray sync` creates one from the run directories.")
    try:
        with patient(), _uncollected():
            client = connect(uri)
            match = client.get_experiment_by_name(name)
            found = list(_runs(client, [match.experiment_id])) if match else _family(client, name)
            return [_row(run) for run in found]
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"MLflow at {without_password(uri)} cannot be read: {reason(error)}.") from error


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from running in the block, where all objects stay.

    A thousand runs are a hundred thousand of them, and it would look at all again and again: 3 of 7 seconds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unknown(name: str, names: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, names, cutoff=0.5) or names
    return ConfigError(
        f"MLflow has no experiment and no run {name!r}; it has {', '.join(map(repr, near[:5])) or 'no experiment'}."
    )


def _family(client: "MlflowClient", name: str) -> list[Any]:
    """Find one run by its name or ID, and its children."""
    experiments = {each.experiment_id: each.name for each in paged(client.search_experiments)}
    by = "run_id" if re.fullmatch("[0-9a-f]{32}", name) else "run_name"
    found = (
        [] if "'" in name or not experiments else list(_runs(client, list(experiments), f"attributes.{by} = '{name}'"))
    )
    if not found:
        raise _unknown(name, list(experiments.values()))
    if len(found) > 1:
        ids = ", ".join(run.info.run_id for run in found[:5])
        raise ConfigError(f"MLflow has {len(found)} runs called {name!r}; name one by its ID: {ids}.")
    info = found[0].info
    return found + list(_runs(client, [info.experiment_id], f"tags.`mlflow.parentRunId` = '{info.run_id}'"))


def _runs(client: "MlflowClient", experiments: list[str], query: str = "") -> Iterator[Any]:
    return paged(client.search_runs, experiments, query, max_results=1000, order_by=["attributes.start_time ASC"])


def _row(run: Any) -> dict[str, Any]:
    tags, params = run.data.tags, run.data.params
    resumed = {name: tags[f"resumed.{name}"] for name in params if f"resumed.{name}" in tags}
    return {
        "name": run.info.run_name,
        "run_id": run.info.run_id,
        "parent": tags.get("mlflow.parentRunId"),
        "state": tags.get("eagleray.state", run.info.status.lower()),
        "tags": dict(tags),
        "params": {**params, **resumed},
        "metrics": dict(run.data.metrics),
        "images": next((each.dataset.digest for each in run.inputs.dataset_inputs), None) if run.inputs else None,
        "experiment_id": run.info.experiment_id,
        "created": run.info.start_time,
    }

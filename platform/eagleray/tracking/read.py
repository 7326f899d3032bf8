"""Read experiments from MLflow, and link to its pages."""

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from eagleray.contracts.errors import ConfigError
from eagleray.tracking.store import connect, patient, reason, sqlite_path, store_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TRAINING = "workflowType=machine_learning"  # otherwise MLflow's pages open with traces of language models


def rows(experiment: str, uri: str | None = None) -> list[dict[str, Any]]:
    """Read an experiment's runs from MLflow, oldest first.

    Each is {"name", "run_id", "parent" (a run_id or None), "state", "tags", "params" (as strings), "metrics" (their
    last values), "experiment_id"}.

    Raises:
        ConfigError: no such store, no such experiment (with the nearest names), or the server does not answer.
    """
    uri = store_uri(uri)
    path = sqlite_path(uri)
    if path and not path.exists():
        raise ConfigError(f"There is no MLflow store at {path}; `eagleray sync` creates one from the run directories.")
    try:
        with patient():
            client = connect(uri)
            match = client.get_experiment_by_name(experiment)
            if match is None:
                raise _unknown(experiment, [each.name for each in client.search_experiments()])
            return [_row(run) for run in _runs(client, match.experiment_id)]
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"MLflow at {without_password(uri)} cannot be read: {reason(error)}.") from error


def _unknown(name: str, names: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, names, cutoff=0.5) or names
    return ConfigError(f"MLflow has no experiment {name!r}; it has {', '.join(map(repr, near[:5]))}.")


def _runs(client: "MlflowClient", experiment_id: str) -> Iterator[Any]:
    token = None
    while token != "":
        page = client.search_runs(
            [experiment_id], max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token or ""


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
        "experiment_id": run.info.experiment_id,
    }


def experiment_url(experiment_id: str, base: str) -> str:
    return f"{base.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs?{_TRAINING}"


def compare_url(experiment_id: str, run_ids: Sequence[str], base: str) -> str:
    """Return the address where MLflow compares runs.

    The page has parallel coordinates, scatter, box and contour plots.

    Args:
        experiment_id: of the runs.
        run_ids: of the runs to compare.
        base: the address of MLflow's pages (`ui_base`).
    """
    runs, experiments = (quote(json.dumps(list(ids), separators=(",", ":"))) for ids in (run_ids, [experiment_id]))
    return f"{base.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}&{_TRAINING}"

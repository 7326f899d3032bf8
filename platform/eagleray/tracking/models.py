"""Keep the best encoder of a sweep as a model of MLflow.

It becomes a logged model of its run, with the run's last metrics, and a version in the registry under the name of the
sweep. `mlflow.pyfunc.load_model("models:/NAME@best")` loads that of the newest sweep (`encoder_model.py`).
"""

import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleray.runs.record import Record
from eagleray.tracking.inputs import dataset

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

KEY = "eagleray.key"  # the tag that says of which run a model is
ALIAS = "best"
FILES = {"loader": "load_encoder.py", "encoder": "encoder.safetensors"}


def is_best(record: Record) -> bool:
    """Return whether a run is the one whose encoder is kept.

    It is the first of the winner's runs, once the sweep has ended.
    """
    if "winner" not in record.tags or not all((record.artifacts / name).exists() for name in FILES.values()):
        return False
    sweep = record.parent
    if sweep is None or sweep.state != "finished":
        return False
    winners = [each.key for each in sweep.children() if "winner" in each.tags]
    return winners[0] == record.key


def keep_model(
    client: "MlflowClient", record: Record, run_id: str, experiment_id: str, last: Iterable["Metric"]
) -> str:
    """Send the encoder of a run as a logged model, if it is not there.

    A model that an earlier attempt left unfinished is finished.

    Args:
        client: of the store.
        record: of the run.
        run_id: of the run in MLflow.
        experiment_id: of its experiment.
        last: the last points of the run's metrics.

    Returns:
        The ID of the model.
    """
    from mlflow.entities import LoggedModelOutput

    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{KEY}` = '{record.key}'")
    if ready := [model.model_id for model in found if str(model.status) == "READY"]:
        return ready[0]
    model = found[0] if found else _create(client, record, run_id, experiment_id)
    with tempfile.TemporaryDirectory() as folder:
        client.log_model_artifacts(model.model_id, str(_saved(record, model, run_id, Path(folder) / "model")))
    outputs = client.get_run(run_id).outputs
    if outputs is None or model.model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.log_batch(run_id, metrics=[_tied(point, record, model.model_id) for point in last], synchronous=True)
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def register(client: "MlflowClient", record: Record, run_id: str, model_id: str) -> None:
    """Make a model a version in the registry, if it is none, and the best if no newer sweep has one."""
    from mlflow.exceptions import MlflowException

    name, sweep = record.experiment, record.parent
    assert sweep is not None, "only a sweep has a best encoder"
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        model = client.create_registered_model(name, description=sweep.file().get("question"))
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((each for each in versions if each.run_id == run_id), None)
    if version is None:
        # Opened directly, MLflow 3.17 would look for `models:/ID` in the store of its own global settings.
        is_server = client.tracking_uri.startswith("http")
        source = f"models:/{model_id}" if is_server else client.get_logged_model(model_id).artifact_location
        tags = {KEY: record.key, "sweep": str(sweep.created)}
        version = client.create_model_version(
            name,
            source,
            run_id,
            tags,
            description=sweep.tags.get("finding"),
            await_creation_for=0,
            model_id=model_id,
        )
    link = json.dumps([{"name": name, "version": str(version.version)}])
    # MLflow's page of the model links to its version, and shows this text.
    tags = {"mlflow.modelVersions": link, "mlflow.note.content": _description(sweep, model_id)}
    client.set_logged_model_tags(model_id, tags)
    best = next((each for each in versions if each.version == str(model.aliases.get(ALIAS))), None)
    if best is None or int(best.tags.get("sweep", 0)) < sweep.created:
        client.set_registered_model_alias(name, ALIAS, version.version)


def _description(sweep: Record, model_id: str) -> str:
    """Return what the sweep has found, and how its best encoder is used."""
    use = f'features = mlflow.pyfunc.load_model("models:/{model_id}").predict(["photo.png"])'
    return f"{sweep.tags.get('finding', '')}\n\n    {use}".lstrip("\n")


def _create(client: "MlflowClient", record: Record, run_id: str, experiment_id: str) -> Any:
    params = {name: str(value) for name, value in record.params.items()}
    return client.create_logged_model(
        experiment_id, record.experiment, run_id, {KEY: record.key}, params, model_type="image encoder"
    )


def _saved(record: Record, model: Any, run_id: str, folder: Path) -> Path:
    """Save the encoder as MLflow stores models."""
    from mlflow import pyfunc
    from mlflow.models import Model

    # It takes paths and arrays, which no signature of MLflow can say; this logger would print that.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
    needs = [f"{name}>={record.environment[name]}" for name in ("mlflow", "torch") if record.environment.get(name)]
    pyfunc.save_model(
        str(folder),
        python_model=str(Path(__file__).with_name("encoder_model.py")),
        artifacts={name: str(record.artifacts / file) for name, file in FILES.items()},
        pip_requirements=[*needs, "numpy", "pillow"],
        mlflow_model=Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id),
    )
    return folder


def _tied(point: "Metric", record: Record, model_id: str) -> "Metric":
    """Return a metric's point once more, tied to a model and its data set; the run keeps equal points once."""
    from mlflow.entities import Metric

    data = dataset(record)
    tied = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
    return Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id, **tied)

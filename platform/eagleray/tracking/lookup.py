"""Find experiments and runs in a store."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record
from eagleray.tracking.store import artifacts_beside, connect, paged
from eagleray.tracking.sync_state import Note

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

RECEIPT = "mlflow.eagleray.sent"  # a tag: the fingerprint of the directory when all of it had been sent


class Lookup:
    """The experiments and runs of one store."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._receipts: dict[str, dict[str, str]] = {}

    @property
    def client(self) -> "MlflowClient":
        if self._client is None:
            self._client = connect(self._uri)
        return self._client

    def run(self, record: Record, note: Note | None) -> Any:
        """Find the run with this record's key, or None.

        The server may complete a request to create it that we gave up on. All but one of such twins are moved to
        MLflow's trash. A run that exists only in the trash was put there by a person: it stays there.
        """
        twins = self.client.search_runs(
            [self.experiment(record.experiment)],
            filter_string=f"tags.`eagleray.key` = '{record.key}'",
            run_view_type=3,  # ViewType.ALL
        )
        noted = note["run_id"] if note else None
        runs = sorted(twins, key=lambda run: (in_trash(run), run.info.run_id != noted, run.info.run_id))
        for twin in runs[1:]:
            if not in_trash(twin):
                self.client.delete_run(twin.info.run_id)
        return runs[0] if runs else None

    def receipts(self, experiment: str) -> dict[str, str]:
        """Return the receipts of an experiment's runs, by their IDs, as they were when this was first asked.

        Twins have none, so that somebody looks at them.
        """
        if experiment not in self._receipts:
            found = [*paged(self.client.search_runs, [self.experiment(experiment)], max_results=1000)]
            keys = Counter(run.data.tags.get("eagleray.key") for run in found)
            alone = (run for run in found if keys[run.data.tags.get("eagleray.key")] == 1)
            self._receipts[experiment] = {run.info.run_id: run.data.tags.get(RECEIPT, "") for run in alone}
        return self._receipts[experiment]

    def experiment(self, name: str) -> str:
        """Return the ID of an experiment, which is created if it is missing."""
        if name not in self._experiments:
            experiment = self.client.get_experiment_by_name(name) or self._create_experiment(name)
            if experiment.lifecycle_stage == "deleted":
                raise ConfigError(f"experiment {name!r} is in MLflow's trash: restore it or choose another name")
            self._experiments[name] = experiment.experiment_id
        return self._experiments[name]

    def _create_experiment(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        # Without it, MLflow's lists take an experiment for one with traces of language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            experiment_id = self.client.create_experiment(name, artifacts_beside(self._uri), tags)
            return self.client.get_experiment(experiment_id)
        except MlflowException:
            if experiment := self.client.get_experiment_by_name(name):  # another process was faster
                return experiment
            raise


def in_trash(run: Any) -> bool:
    return run.info.lifecycle_stage == "deleted"


def last_points(run: Any) -> "list[Metric]":
    """Return the last point of each metric of a run, with its step and time."""
    from mlflow.entities import Metric

    return [Metric.from_proto(point) for point in run.data.to_proto().metrics]

"""Find experiments and runs in a store."""

import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record
from eagleray.tracking.store import artifacts_beside, connect
from eagleray.tracking.sync_state import Note

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# A tag of an experiment: its identity in this store, and when a run of it was last sent completely (ms since 1970).
# Pages do not show mlflow.*.
STAMP = "mlflow.eagleray.sent"


class Lookup:
    """The experiments and runs of one store."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._stamps: dict[str, str] = {}

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

    def stamp(self, experiment: str) -> str:
        """Leave a stamp in an experiment, larger than all before, and return it: what was sent until now is there."""
        found = self.client.get_experiment(self.experiment(experiment))
        identity, _, last = found.tags.get(STAMP, "").partition(" ")
        stamp = f"{identity or uuid4().hex} {max(time.time_ns() // 1_000_000, int(last or 0) + 1)}"
        self.client.set_experiment_tag(found.experiment_id, STAMP, stamp)
        return stamp

    def holds(self, experiment: str, note: Note) -> bool:
        """Return whether the store has what a note says: its experiment has the note's stamp, or a later one.

        That of the first question counts. A store that was replaced has other stamps; an older copy has older ones.
        """
        if experiment not in self._stamps:
            found = self.client.get_experiment(self.experiment(experiment))
            self._stamps[experiment] = found.tags.get(STAMP, "")
        identity, _, last = self._stamps[experiment].partition(" ")
        mine, _, at = note.get("stamp", "").partition(" ")
        return bool(mine) and identity == mine and int(at) <= int(last)

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

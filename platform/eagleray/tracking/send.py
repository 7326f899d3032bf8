"""Sends one run to MLflow: what the store lacks of it, and nothing twice.

A run is found by its key before it is made. Of each metric, only points beyond the last step that the store
has are sent, in the order of steps; so whatever part of an earlier attempt arrived, the rest follows it. A
step reported twice (workers restarted from a checkpoint) stays as it was sent first: MLflow can neither
replace nor delete a point. Should a request be carried out long after we gave up on it, its points equal ours
in every column, and MLflow keeps one.
"""

import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record
from eagleray.tracking.store import (
    answered,
    artifacts_beside,
    connect,
    locked,
    patient,
    reason,
    store_uri,
    without_password,
)
from eagleray.tracking.sync_state import Note, files, fingerprint, read_note, write_note

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow has one word for whatever was ended from outside; the tag eagleray.state says what it was.
STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
    "collapsed": "KILLED",
}
DESCRIPTION = "mlflow.note.content"  # Markdown, which MLflow's page of a run shows as its description
Point = tuple[int, str, float, int]  # step, metric, value, time in ms


@dataclass(frozen=True)
class Sent:
    points: int = 0
    files: int = 0
    new: bool = False  # whether the store lacked anything of this run


@dataclass(frozen=True)
class Unsent:
    reason: str
    answered: bool  # whether the store answered at all


@dataclass
class Kept:
    """What the store has of a run, and how far the run's directory has been read."""

    run_id: str
    status: str = "RUNNING"
    in_trash: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    last: dict[str, tuple[int, float]] = field(default_factory=dict)  # metric -> its last step and value there
    files: dict[str, list[int]] = field(default_factory=dict)  # path -> size and time when it was sent
    note: Note | None = None  # sent.json as it was when this was true
    offset: int = 0  # bytes of metrics.jsonl
    step: int = 0  # the highest in it
    nonfinite: int = 0  # NaN and infinities in it


def sync(record: Record, uri: str | None = None) -> Sent | Unsent:
    """Sends one run. Called again, it sends what has come since."""
    return Destination(uri).send(record)


class Destination:
    """One MLflow store, as one process sees it."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = store_uri(uri)
        self.name = without_password(self.uri)
        self.deadline = math.inf  # of time.monotonic(): there a long backlog is left off
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._kept: dict[str, Kept] = {}

    def send(self, record: Record) -> Sent | Unsent:
        """Sends what the store lacks of this run; of its parent, that it exists. Raises nothing."""
        try:
            with patient(), locked(record.directory / "sync.lock", wait=False):
                return self._send(record)
        except Exception as error:  # MLflow, a database's driver, the network: none of it may reach training
            self._kept.pop(record.key, None)  # nobody knows what arrived; the next attempt asks
            return Unsent(reason(error), answered(error))

    def _send(self, record: Record) -> Sent:
        seen = fingerprint(record)  # taken first: whatever is written from here on will change it
        kept = self._known(record)
        if kept.note is not None and kept.note["fingerprint"] == seen:
            return Sent()
        points = paths = 0
        if not kept.in_trash:
            self._send_params_and_tags(record, kept)
            points = self._send_rows(record, kept) + self._send_summary(record, kept)
            paths = self._send_files(record, kept)
            self._send_status(record, kept)
        kept.note = {"run_id": kept.run_id, "fingerprint": seen, "files": dict(kept.files)}
        write_note(record, self.name, kept.note)
        return Sent(points, paths, new=not kept.in_trash)

    # What the store has

    @property
    def client(self) -> "MlflowClient":
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    def _known(self, record: Record) -> Kept:
        note = read_note(record, self.name)
        kept = self._kept.get(record.key)
        if kept is None or kept.note != note:  # first contact, or another process has sent since
            kept = self._kept[record.key] = self._ask(record, note)
        return kept

    def _ask(self, record: Record, note: Note | None) -> Kept:
        run = self._find(record, note)
        if run is None:
            return Kept(self._create(record), tags=self._tags(record))
        run_id = run.info.run_id
        note = note if note and note["run_id"] == run_id else None
        if _in_trash(run):
            return Kept(run_id, in_trash=True, note=note)
        return Kept(
            run_id,
            status=run.info.status,
            params=run.data.params,
            tags=run.data.tags,
            last={name: self._last(run_id, name) for name in run.data.metrics},
            files=dict(note["files"]) if note else {},
            note=note,
        )

    def _find(self, record: Record, note: Note | None) -> Any:
        """The run with this record's key, or None.

        A request to make it that we gave up on may be carried out after all. Of such twins all but one go to
        MLflow's trash. A run of which only the trash has one was put there by a person: it stays there.
        """
        found = self.client.search_runs(
            [self._experiment(record.experiment)],
            filter_string=f"tags.`eagleray.key` = '{record.key}'",
            run_view_type=3,  # ViewType.ALL
        )
        noted = note["run_id"] if note else None
        runs = sorted(found, key=lambda run: (_in_trash(run), run.info.run_id != noted, run.info.run_id))
        for twin in runs[1:]:
            if not _in_trash(twin):
                self.client.delete_run(twin.info.run_id)
        return runs[0] if runs else None

    def _last(self, run_id: str, metric: str) -> tuple[int, float]:
        points = self.client.get_metric_history(run_id, metric)
        last = max(points, key=lambda point: (point.step, point.timestamp))
        return last.step, last.value

    def _create(self, record: Record) -> str:
        experiment = self._experiment(record.experiment)
        run = self.client.create_run(experiment, record.created, self._tags(record), record.name)
        return run.info.run_id

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name) or self._create_experiment(name)
            if found.lifecycle_stage == "deleted":
                raise ConfigError(f"experiment {name!r} is in MLflow's trash: restore it or take another name")
            self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _create_experiment(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        # The tag makes MLflow's pages open on training runs; without it, on traces of language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            made = self.client.create_experiment(name, artifacts_beside(self.uri), tags)
            return self.client.get_experiment(made)
        except MlflowException:
            if found := self.client.get_experiment_by_name(name):  # another process was faster
                return found
            raise

    # What the directory has

    def _tags(self, record: Record) -> dict[str, str]:
        status = record.status
        tags = {
            **{f"environment.{name}": value for name, value in record.environment.items()},
            DESCRIPTION: _description(record),
            **record.tags,
            "eagleray.key": record.key,
            "eagleray.state": status["state"],
            "eagleray.message": status["message"],
            "mlflow.runName": record.name,
            "mlflow.source.name": "eagleray",
            "mlflow.source.git.commit": record.environment.get("commit"),
            "mlflow.user": record.environment.get("user"),
            "mlflow.parentRunId": self._parent_id(record),
        }
        return {_name(name): _text(value, 8000) for name, value in tags.items() if value is not None}

    def _parent_id(self, record: Record) -> str | None:
        parent = record.parent
        if parent is None:
            return None
        with locked(parent.directory / "sync.lock", wait=False):
            return self._known(parent).run_id

    def _send_params_and_tags(self, record: Record, kept: Kept) -> None:
        """MLflow's params are written once: of a resumed run, those that differ by now become tags."""
        from mlflow.entities import Param, RunTag

        params = {_name(name): _text(value, 6000) for name, value in record.params.items()}
        new = {name: value for name, value in params.items() if name not in kept.params}
        tags = self._tags(record)
        for name, value in params.items():
            if kept.params.get(name, value) != value or f"resumed.{name}" in kept.tags:
                tags[f"resumed.{name}"] = value
        if DESCRIPTION in kept.tags:
            tags.pop(DESCRIPTION, None)  # a person may have written there since
        changed = {name: value for name, value in tags.items() if kept.tags.get(name) != value}
        for batch in self._batches(new.items(), 100):
            self._log(kept, params=[Param(*each) for each in batch])
        for batch in self._batches(changed.items(), 100):
            self._log(kept, tags=[RunTag(*each) for each in batch])
        kept.params |= new
        kept.tags |= changed

    def _send_rows(self, record: Record, kept: Kept) -> int:
        rows, kept.offset = record.read(kept.offset)
        points: dict[tuple[int, str], Point] = {}  # of rows with the same step the last one holds
        for row in rows:
            step, at = row["step"], row["time"]
            kept.step = max(kept.step, step)
            for name, value in row["metrics"].items():
                if math.isfinite(value):
                    points[step, _name(name)] = step, _name(name), value, at
                else:  # it would break the charts of MLflow's pages
                    kept.nonfinite += 1
                    points[step, "nonfinite"] = step, "nonfinite", kept.nonfinite, at
        return self._send_points(kept, sorted(points.values()))

    def _send_summary(self, record: Record, kept: Kept) -> int:
        """The numbers a run ends with: each becomes its metric's last point, unless it is that already."""
        status = record.status
        points = []
        for name, value in status["summary"].items():
            step, last = kept.last.get(_name(name), (-1, None))
            if math.isfinite(value) and value != last:
                points.append((max(kept.step, step + 1), _name(name), value, status["time"]))
        return self._send_points(kept, points)

    def _send_points(self, kept: Kept, points: list[Point]) -> int:
        from mlflow.entities import Metric

        new = [point for point in points if point[0] > kept.last.get(point[1], (-1, 0.0))[0]]
        for batch in self._batches(new, 1000):
            self._log(kept, metrics=[Metric(name, value, at, step) for step, name, value, at in batch])
        kept.last |= {name: (step, value) for step, name, value, _ in new}
        return len(new)

    def _send_files(self, record: Record, kept: Kept) -> int:
        """run.yaml goes to the top of the run's files, artifacts/a/b.png to a/b.png."""
        changed = {path: facts for path, facts in files(record).items() if kept.files.get(path) != facts}
        for (path, facts), *_ in self._batches(changed.items(), 1):
            folder = "/".join(PurePosixPath(path).parts[1:-1])
            self.client.log_artifact(kept.run_id, str(record.directory / path), folder or None)
            kept.files[path] = facts
        return len(changed)

    def _send_status(self, record: Record, kept: Kept) -> None:
        status = record.status
        wanted = STATUS[status["state"]]
        if kept.status == wanted:
            return
        if wanted == "RUNNING":
            self.client.update_run(kept.run_id, wanted)
        else:
            self._find(record, {"run_id": kept.run_id})  # twins have shown by now
            self.client.set_terminated(kept.run_id, wanted, status["time"])
        kept.status = wanted

    def _log(self, kept: Kept, **what: Any) -> None:
        self.client.log_batch(kept.run_id, synchronous=True, **what)

    def _batches(self, items: Iterable[Any], size: int) -> Iterator[list[Any]]:
        items = list(items)
        for start in range(0, len(items), size):
            self._in_time()
            yield items[start : start + size]

    def _in_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError("there was no time left")


def _description(record: Record) -> str | None:
    """What the run's metrics mean."""
    lines = [f"- **{name}**: {meaning}" for name, meaning in record.meanings.items()]
    return "\n".join(["What the metrics mean:", "", *lines]) if lines else None


def _in_trash(run: Any) -> bool:
    return run.info.lifecycle_stage == "deleted"


def _name(name: str) -> str:
    """MLflow refuses a whole batch for one name with any other character."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def _text(value: Any, length: int = 6000) -> str:
    """The same number is always the same text, whether a file or a sampler gave it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format(value, ".8g")
    if isinstance(value, list | tuple):
        value = f"[{', '.join(_text(each) for each in value)}]"
    return str(value)[:length]

"""Send what MLflow lacks of a run.

Nothing is sent twice. A run is searched by its key before it is created. Of each metric, only points after the last
step in the store are sent, in the order of steps; so the rest follows whatever part of an earlier attempt arrived. A
step reported twice (workers restarted from a checkpoint) keeps the value that was sent first: MLflow can neither
replace nor delete a point. If the server completes a request long after we gave up on it, its points equal ours in
every column, and MLflow keeps one.
"""

import math
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from eagleray.contracts.address import without_password
from eagleray.runs.record import METRICS, SYSTEM, Record
from eagleray.tracking.descriptions import description, display_name, tags_for
from eagleray.tracking.gains import gains
from eagleray.tracking.inputs import HAS_IMAGES, VIEWS, dataset_inputs, grid_images
from eagleray.tracking.links import view_path
from eagleray.tracking.lookup import Lookup, in_trash
from eagleray.tracking.models import is_best, keep_model, register
from eagleray.tracking.page import new_tags, page_tags, view_of
from eagleray.tracking.store import (
    answered,
    locked,
    patient,
    reason,
    store_uri,
)
from eagleray.tracking.sync_state import Note, files, fingerprint, read_note, write_note

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow has one status for all runs that were ended from outside; the tag eagleray.state is exact.
STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
    "collapsed": "KILLED",
}
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
    """The part of a run that the store has.

    It also says how far the run's directory has been read.
    """

    run_id: str
    status: str = "RUNNING"
    in_trash: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    last: dict[str, tuple[int, float]] = field(default_factory=dict)  # metric -> last step and value in the store
    files: dict[str, list[int]] = field(default_factory=dict)  # path -> size and time when it was sent
    note: Note | None = None  # content of sent.json at that time
    offsets: dict[str, int] = field(default_factory=dict)  # bytes of metrics.jsonl and system.jsonl
    step: int = 0  # the highest in them
    nonfinite: int = 0  # NaN and infinities in metrics.jsonl
    inputs: list[Any] | None = None  # the images it used, as sent
    page: dict[str, str] | None = None  # tags of its experiment, as sent
    model: str | None = None  # the ID of its encoder as a model


def sync(record: Record, uri: str | None = None) -> Sent | Unsent:
    """Send one run; called again, send what is new."""
    return Destination(uri).send(record)


class Destination:
    """One MLflow store, as seen by one process."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = store_uri(uri)
        self.name = without_password(self.uri)
        self.deadline = math.inf  # of time.monotonic(): sending stops then, even with a backlog
        self.lacks: dict[str, None] = {}  # sentences about what this store cannot do
        self.lookup = Lookup(self.uri)
        self._kept: dict[str, Kept] = {}

    def send(self, record: Record) -> Sent | Unsent:
        """Send what the store lacks of this run.

        The run's parent is created if it is missing. It raises nothing: errors are returned as `Unsent`.
        """
        try:
            with patient(), locked(record.directory / "sync.lock", wait=False):
                return self._send(record)
        except Exception as error:  # no failure of MLflow, a database driver or the network may reach training
            self._kept.pop(record.key, None)  # it is unknown what arrived; the next attempt asks the store
            return Unsent(reason(error), answered(error))

    def _send(self, record: Record) -> Sent:
        state = fingerprint(record)  # computed first: whatever is written later changes it
        kept = self._known(record)
        if kept.note is not None and kept.note["fingerprint"] == state:
            return Sent()
        points = paths = 0
        if not kept.in_trash:
            self._send_params_and_tags(record, kept)
            points = self._send_rows(record, kept) + self._send_summary(record, kept)
            paths = self._send_files(record, kept)
            self._send_inputs(record, kept)
            self._send_page(record, kept)
            self._send_model(record, kept)
            self._send_status(record, kept)
        page = view_path(self.lookup.experiment(record.experiment), view_of(record))
        kept.note = {"run_id": kept.run_id, "fingerprint": state, "files": dict(kept.files), "page": page}
        write_note(record, self.name, kept.note)
        return Sent(points, paths, new=not kept.in_trash)

    # What the store has

    @property
    def client(self) -> "MlflowClient":
        return self.lookup.client

    def _known(self, record: Record) -> Kept:
        note = read_note(record, self.name)
        kept = self._kept.get(record.key)
        if kept is None or kept.note != note:  # first contact, or another process has sent meanwhile
            kept = self._kept[record.key] = self._ask(record, note)
        return kept

    def _ask(self, record: Record, note: Note | None) -> Kept:
        run = self.lookup.run(record, note)
        if run is None:
            return Kept(self._create(record), tags=self._tags(record))
        run_id = run.info.run_id
        note = note if note and note["run_id"] == run_id else None
        if in_trash(run):
            return Kept(run_id, in_trash=True, note=note)
        points = {name: self.lookup.last_point(run_id, name) for name in run.data.metrics}
        return Kept(
            run_id,
            status=run.info.status,
            params=run.data.params,
            tags=run.data.tags,
            last={name: (last.step, last.value) for name, last in points.items()},
            files=dict(note["files"]) if note else {},
            note=note,
        )

    def _create(self, record: Record) -> str:
        experiment = self.lookup.experiment(record.experiment)
        run = self.client.create_run(experiment, record.created, self._tags(record), display_name(record))
        return run.info.run_id

    # What the directory has

    def _tags(self, record: Record, before: Mapping[str, str] | None = None) -> dict[str, str]:
        status = record.status
        tags = {
            **{f"environment.{name}": value for name, value in record.environment.items()},
            **tags_for(description(record), before or {}),
            "kind": record.kind,
            **record.tags,
            "eagleray.key": record.key,
            "eagleray.state": status["state"],
            "eagleray.message": status["message"],
            "mlflow.runName": display_name(record),
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
        """Send params and tags.

        Params that a resumed run has changed become tags, as MLflow never changes a param.
        """
        from mlflow.entities import Param

        params = {_name(name): _text(value, 6000) for name, value in record.params.items()}
        new = {name: value for name, value in params.items() if name not in kept.params}
        tags = self._tags(record, kept.tags)
        for name, value in params.items():
            if kept.params.get(name, value) != value or f"resumed.{name}" in kept.tags:
                tags[f"resumed.{name}"] = value
        changed = {name: value for name, value in tags.items() if kept.tags.get(name) != value}
        for batch in self._batches(new.items(), 100):
            self._log(kept, params=[Param(*each) for each in batch])
        self._set_tags(kept, changed)
        kept.params |= new

    def _set_tags(self, kept: Kept, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for batch in self._batches(tags.items(), 100):
            self._log(kept, tags=[RunTag(*each) for each in batch])
        kept.tags |= tags

    def _send_rows(self, record: Record, kept: Kept) -> int:
        rows: list[dict[str, Any]] = []
        for file in (METRICS, SYSTEM):
            new, kept.offsets[file] = record.read(kept.offsets.get(file, 0), file=file)
            rows += new
        points: dict[tuple[int, str], Point] = {}  # of rows with the same step the last one counts
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
        """Send final numbers as last points of their metrics.

        They are not sent if they already are the last points.
        """
        status = record.status
        points = []
        for name, value in {**status["summary"], **gains(record)}.items():
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
        """Send changed files.

        run.yaml goes to the top of the run's files, artifacts/a/b.png to a/b.png.
        """
        changed = {path: facts for path, facts in files(record).items() if kept.files.get(path) != facts}
        for (path, facts), *_ in self._batches(changed.items(), 1):
            folder = "/".join(PurePosixPath(path).parts[1:-1])
            self.client.log_artifact(kept.run_id, str(record.directory / path), folder or None)
            if path == VIEWS:
                self._send_views(record, kept)
            kept.files[path] = facts
        return len(changed)

    def _send_views(self, record: Record, kept: Kept) -> None:
        """Send the picture of the views once more, for the image grid."""
        with tempfile.TemporaryDirectory() as folder:
            for path in grid_images(record, Path(folder)):
                self.client.log_artifact(kept.run_id, str(path), "images")
        self._set_tags(kept, HAS_IMAGES)

    def _send_inputs(self, record: Record, kept: Kept) -> None:
        """Send which images the run used; MLflow keeps equal inputs once."""
        inputs = dataset_inputs(record)
        if inputs and inputs != kept.inputs:
            self.client.log_inputs(kept.run_id, inputs)
        kept.inputs = inputs

    def _send_model(self, record: Record, kept: Kept) -> None:
        """Send the best encoder of a sweep, as a logged model and a version in the registry."""
        if kept.model or not is_best(record):
            return
        last = [self.lookup.last_point(kept.run_id, name) for name in kept.last]
        experiment_id = self.lookup.experiment(record.experiment)
        with self._optional("does not keep the best encoder as a model"):
            kept.model = keep_model(self.client, record, kept.run_id, experiment_id, last)
        if kept.model:
            with self._optional("does not register the best encoder"):
                register(self.client, record, kept.run_id, kept.model)

    @contextmanager
    def _optional(self, lack: str) -> Iterator[None]:
        """Accept that a store cannot do something, and say so.

        A server that does not answer is asked again later.
        """
        try:
            yield
        except Exception as error:
            if self.uri.startswith("http") and not answered(error):
                raise
            self.lacks[f"MLflow at {self.name} {lack}: {reason(error)}."] = None

    def _send_page(self, record: Record, kept: Kept) -> None:
        """Prepare the page of the experiment: its view, and the question over it.

        The newest sweep has the word; `eagleray sync` may send older ones later.
        """
        tags = page_tags(record, self.lookup.experiment(record.experiment), kept.run_id)
        if tags == kept.page:
            return
        experiment = self.client.get_experiment(self.lookup.experiment(record.experiment))
        for name, value in new_tags(tags, experiment.tags).items():
            self.client.set_experiment_tag(experiment.experiment_id, name, value)
        kept.page = tags

    def _send_status(self, record: Record, kept: Kept) -> None:
        status = record.status
        wanted = STATUS[status["state"]]
        if kept.status == wanted:
            return
        if wanted == "RUNNING":
            self.client.update_run(kept.run_id, wanted)
        else:
            self.lookup.run(record, {"run_id": kept.run_id})  # twins exist by now, so remove them
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
            raise TimeoutError("the time was up")


def _name(name: str) -> str:
    """Replace characters that MLflow does not accept.

    It would refuse a whole batch for one of them.
    """
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def _text(value: Any, length: int = 6000) -> str:
    """Return a value as text.

    Equal numbers give the same text, whether from a file or a sampler.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format(value, ".8g")
    if isinstance(value, list | tuple):
        value = f"[{', '.join(_text(each) for each in value)}]"
    return str(value)[:length]

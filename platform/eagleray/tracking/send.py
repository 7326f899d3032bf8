"""Send what MLflow lacks of a run.

Nothing is sent twice. A run is searched by its key before it is created. Of each metric, only points after the last
step in the store are sent, in the order of steps; so the rest follows whatever part of an earlier attempt arrived. A
step reported twice (workers restarted from a checkpoint) keeps the value that was sent first: MLflow can neither
replace nor delete a point. If the server completes a request long after we gave up on it, its points equal ours in
every column, and MLflow keeps one.

Nothing is asked twice either. When all of a run is there, its experiment gets a stamp, larger than all before, which
is noted in sent.json with the fingerprint of the directory. One question for each experiment then tells which notes
hold: a store that was replaced has other stamps, one that was restored from an older copy has older ones.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from eagleray.contracts.address import without_password
from eagleray.runs.record import Record
from eagleray.tracking.contents import Point, Rows, batches, changed_params, name_of, params_of, tags_of
from eagleray.tracking.descriptions import display_name
from eagleray.tracking.gains import gains
from eagleray.tracking.inputs import VIEWS, dataset_inputs, grid_images
from eagleray.tracking.links import view_path
from eagleray.tracking.lookup import Lookup, in_trash, last_points
from eagleray.tracking.models import is_best, keep_model, register
from eagleray.tracking.page import new_tags, page_tags, view_of
from eagleray.tracking.store import answered, locked, patient, reason, store_uri
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
    rows: Rows = field(default_factory=Rows)
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
        self.is_server = self.uri.startswith("http")
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
        note = read_note(record, self.name)
        if note is not None and note["fingerprint"] == state and self._has_all(record, note):
            return Sent()
        kept = self._known(record, note)
        points = paths = 0
        if not kept.in_trash:
            points = self._send_numbers(record, kept)
            paths = self._send_files(record, kept)
            self._send_inputs(record, kept)
            self._send_page(record, kept)
            self._send_model(record, kept)
            self._send_status(record, kept)
        page = view_path(self.lookup.experiment(record.experiment), view_of(record))
        said = {"fingerprint": state, "stamp": self.lookup.stamp(record.experiment)}
        kept.note = {"run_id": kept.run_id, **said, "files": dict(kept.files), "page": page}
        write_note(record, self.name, kept.note)
        return Sent(points, paths, new=not kept.in_trash)

    # What the store has

    @property
    def client(self) -> "MlflowClient":
        return self.lookup.client

    def _has_all(self, record: Record, note: Note) -> bool:
        """Return whether the store has what a note says: this process has sent it, or the store has the stamp."""
        kept = self._kept.get(record.key)
        return kept.note == note if kept else self.lookup.holds(record.experiment, note)

    def _known(self, record: Record, note: Note | None) -> Kept:
        kept = self._kept.get(record.key)
        if kept is None or kept.note != note:  # first contact, or another process has sent meanwhile
            kept = self._kept[record.key] = self._ask(record, note)
        return kept

    def _ask(self, record: Record, note: Note | None) -> Kept:
        run = self.lookup.run(record, note)
        if run is None:
            return self._created(record)
        run_id = run.info.run_id
        note = note if note and note["run_id"] == run_id else None
        if in_trash(run):
            return Kept(run_id, in_trash=True, note=note)
        has_files = note is not None and self.lookup.holds(record.experiment, note)
        return Kept(
            run_id,
            status=run.info.status,
            params=run.data.params,
            tags=run.data.tags,
            last={point.key: (point.step, point.value) for point in last_points(run)},
            files=dict(note["files"]) if note and has_files else {},
            note=note,
        )

    def _created(self, record: Record) -> Kept:
        tags = tags_of(record, {}, self._parent_id(record))
        experiment = self.lookup.experiment(record.experiment)
        run = self.client.create_run(experiment, record.created, tags, display_name(record))
        return Kept(run.info.run_id, tags=tags)

    def _parent_id(self, record: Record) -> str | None:
        parent = record.parent
        if parent is None:
            return None
        if kept := self._kept.get(parent.key):
            return kept.run_id
        with locked(parent.directory / "sync.lock", wait=False):
            return self._known(parent, read_note(parent, self.name)).run_id

    # What the directory has

    def _send_numbers(self, record: Record, kept: Kept) -> int:
        """Send params, tags and points."""
        params, resumed = changed_params(params_of(record), kept.params, kept.tags)
        tags = {**tags_of(record, kept.tags, self._parent_id(record)), **resumed}
        tags = {name: value for name, value in tags.items() if kept.tags.get(name) != value}
        points = self._new(kept, kept.rows.read(record))
        points += self._new(kept, self._summary(record, kept))
        for batch in batches(params, tags, points):
            self._in_time()
            self.client.log_batch(kept.run_id, synchronous=True, **batch)
        kept.params |= params
        kept.tags |= tags
        return len(points)

    def _new(self, kept: Kept, points: list[Point]) -> list[Point]:
        """Return the points after the last of their metrics, which they then are."""
        new = [point for point in points if point[0] > kept.last.get(point[1], (-1, 0.0))[0]]
        kept.last |= {name: (step, value) for step, name, value, _ in new}
        return new

    def _summary(self, record: Record, kept: Kept) -> list[Point]:
        """Return the final numbers, without those that are the last points of their metrics."""
        status = record.status
        points = []
        for name, value in {**status["summary"], **gains(record)}.items():
            step, last = kept.last.get(name_of(name), (-1, None))
            if math.isfinite(value) and value != last:
                points.append((max(kept.rows.step, step + 1), name_of(name), value, status["time"]))
        return points

    def _send_files(self, record: Record, kept: Kept) -> int:
        """Send changed files.

        run.yaml goes to the top of the run's files, artifacts/a/b.png to a/b.png.
        """
        changed = {path: facts for path, facts in files(record).items() if kept.files.get(path) != facts}
        for path, facts in changed.items():
            self._in_time()
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
        last = last_points(self.client.get_run(kept.run_id))
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
            if self.is_server and not answered(error):
                raise
            self.lacks[f"MLflow at {self.name} {lack}: {reason(error)}."] = None

    def _send_page(self, record: Record, kept: Kept) -> None:
        """Prepare the page of the experiment: its view, and the question over it.

        The newest sweep has the word; `eagleray sync` may send older ones later.
        """
        tags = page_tags(record, self.lookup.experiment(record.experiment), kept.run_id)
        if not tags or tags == kept.page:
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
            if self.is_server:
                self.lookup.run(record, {"run_id": kept.run_id})  # twins exist by now, so remove them
            self.client.set_terminated(kept.run_id, wanted, status["time"])
        kept.status = wanted

    def _in_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError("the time was up")

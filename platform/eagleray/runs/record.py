"""The record of a run, in its directory.

The directory is the only source for what the run was, what it measured and how it ended.

    record.json     key, name, experiment, params, tags, where it ran (written again on resuming)
    run.yaml        the resolved run file
    data.json       the images that it used: their digest, how many there are, and the sizes in pixels that were
                    found for what run.yaml leaves open (null); that file stays as it was asked
    metrics.jsonl   one line for each report, appended while the run trains
    system.jsonl    the same for what it used of its machine, kept apart because no report compares it
    status.json     how it ended and its last numbers; absent while it runs
    .room           bytes that make room for status.json on a full disk; absent when it has ended
    artifacts/      pictures, the encoder and other files to keep
    trials/<id>/    the runs of a sweep, each a directory like this one

Training writes only here. Everything else (leaderboards, MLflow) only reads, so nothing else can slow or stop it.
Every file except those two is replaced as a whole; in them, readers skip a last line that a killed process left half
written. All of them carry digests (contracts/files.py), so that damage is found before anything is read from them. One
process at a time writes to a directory; any number may read.
"""

import json
import math
import operator
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import yaml

from eagleray.config.budget import OVER
from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError, Damaged, Skipped
from eagleray.contracts.files import JSON, LINE, YAML, force, make_folder, writable, write
from eagleray.runs.environment import Value, environment

ENDINGS = ("finished", "failed", "stopped", "collapsed")
INTERRUPTED = "with its sweep"  # why a trial or floor was stopped; a resumed sweep continues it
METRICS, SYSTEM = "metrics.jsonl", "system.jsonl"
WORKERS, CHANGES = "workers", "workers_changed"  # tags of a run whose number of workers has changed: how many, and when
ROOM, BYTES = ".room", 2**14
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is several times as fast, and part of most builds
LONGEST = 2**20  # bytes of a row, at most
PLACES = ("step", "epoch", "time")  # columns of every row, so no metric can have these names


class WithoutAliases(yaml.SafeDumper):
    """Writes equal parts of a file out, so that a reader may refuse aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True)
class Record:
    """One run, or one sweep, in its directory.

    It holds record.json; the other files are read when asked for.
    """

    directory: Path
    key: str  # created once; identifies the run everywhere, also after a restart
    name: str
    experiment: str
    created: int  # milliseconds since 1970, of the first start
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    environment: Mapping[str, Value]
    above: str | None = None  # the parent's directory relative to this one, so the tree can be moved
    uri: str | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)  # of the metrics, by name

    @classmethod
    def create(
        cls,
        directory: Path | str,
        *,
        name: str,
        experiment: str,
        params: Mapping[str, Any],
        run: Mapping[str, Any],
        parent: "Record | None" = None,
        tags: Mapping[str, str] | None = None,
        meanings: Mapping[str, str] | None = None,
        uri: str | None = None,
    ) -> "Record":
        """Start or resume a run in `directory`.

        When it is resumed, key, start and tags stay, and the status is removed.

        Args:
            params: all settings, flat, with dotted keys (`method.temperature`): what tables show and compare.
            run: the resolved run file, plain values only; written to run.yaml.
            meanings: of each metric that the run may report.
            uri: the MLflow store it belongs to; by default the parent's. A password in it is removed, because
                directories get shared.
        """
        directory = Path(directory)
        make_folder(directory / "artifacts")
        before = cls.open(directory) if (directory / "record.json").exists() else None
        record = cls(
            directory=directory,
            key=before.key if before else uuid4().hex,
            name=name,
            experiment=experiment,
            created=before.created if before else _now(),
            params=dict(params),
            tags={**(before.tags if before else {}), **(tags or {})},
            environment=environment(),
            above=os.path.relpath(parent.directory, directory) if parent else None,
            uri=without_password(uri) if uri else parent and parent.uri,
            meanings=dict(meanings or {}),
        )
        text = yaml.dump(dict(run), Dumper=WithoutAliases, sort_keys=False, allow_unicode=True)
        write(directory / "run.yaml", YAML.put(text))
        write(directory / ROOM, os.urandom(BYTES))  # no zeros: a file system may store those without room
        record.reopen()
        record._save()
        return record

    @classmethod
    def open(cls, directory: Path | str) -> "Record":
        """Read the record in a directory.

        Raises:
            ConfigError: the directory is not that of a run.
            Damaged: its record is damaged.
        """
        directory = Path(directory)
        try:
            facts = _facts(directory / "record.json", "Move it away")
        except OSError as error:
            is_absent = isinstance(error, FileNotFoundError | NotADirectoryError)
            why = "it has no record.json" if is_absent else f"record.json: {error.strerror}"
            raise ConfigError(
                f"{directory} is not the directory of a run ({why}); `eagleray runs ls` lists them, as "
                "runs/EXPERIMENT/RUN"
            ) from None
        known = {each.name for each in fields(cls)} - {"directory"}
        return cls(directory=directory, **{name: value for name, value in facts.items() if name in known})

    @property
    def kind(self) -> str:
        """`sweep`, `trial` or `floor` of a sweep, or a single `run`."""
        return self.tags.get("kind", "run")

    @property
    def varied(self) -> dict[str, Any]:
        """The values of the keys that its sweep varies."""
        keys = self.tags.get("varied", "").split() if self.kind == "trial" else []
        return {key: self.params.get(key) for key in keys}

    @property
    def title(self) -> str:
        """Its name in MLflow's tables, where no folder says what it is.

        A trial is named with its varied values, a sweep with its start, as its directory is.
        """
        if self.kind == "sweep":
            return f"{self.name}/{self.directory.name}"
        values = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in self.varied.items() if key != "run"]
        return " ".join([self.name, *values])

    # Writing: only by the run itself

    def append(
        self, step: int, metrics: Mapping[str, float], epoch: float | None = None, *, file: str = METRICS
    ) -> None:
        """Add a row to METRICS or SYSTEM.

        `step` counts samples or optimizer steps. When this returns, the row outlasts a power cut.

        NaN and infinities are stored as strings: JSON has no numbers for them.

        Raises:
            ConfigError: a metric has the name of a column.
            Failed: there is no room on the disk, or it cannot be written.
        """
        if taken := [name for name in metrics if name in PLACES]:
            raise ConfigError(f"A metric cannot be named {taken[0]!r}: every row has that column already.")
        row = {
            "step": operator.index(step),
            "epoch": None if epoch is None else float(epoch),
            "time": _now(),
            "metrics": {name: _jsonable(value) for name, value in metrics.items()},
        }
        line = LINE.put(json.dumps(row, allow_nan=False)) + b"\n"
        path = self.directory / file
        with writable(path), open(path, "ab+") as rows:
            is_new = rows.tell() == 0
            _cut_torn_line(rows)
            rows.write(line)
            rows.flush()
            os.fsync(rows.fileno())
            if is_new:
                force(self.directory)  # which has its name

    def tag(self, tags: Mapping[str, str]) -> "Record":
        """Add tags to those that are there.

        Some are known only later: the checkpoint's path, a sweep's finding.
        """
        tagged = replace(self, tags={**Record.open(self.directory).tags, **tags})
        tagged._save()
        return tagged

    def keep_data(self, facts: Mapping[str, Any]) -> None:
        """Write which images the run used."""
        write(self.directory / "data.json", JSON.put(json.dumps(dict(facts), indent=1)))

    def finish(
        self,
        state: str,
        message: str = "",
        summary: Mapping[str, float] | None = None,
        failure: Mapping[str, str] | None = None,
    ) -> None:
        """Write how the run ended.

        The state is finished, failed (see runs/failures.py), stopped (by a scheduler or a person) or collapsed.
        """
        if state not in ENDINGS:
            raise ValueError(f"a run ends as one of {ENDINGS}, not {state!r}")
        numbers = {name: _jsonable(value) for name, value in (summary or {}).items()}
        sizes = {file: path.stat().st_size for file in (METRICS, SYSTEM) if (path := self.directory / file).exists()}
        ending: dict[str, Any] = {"state": state, "message": message, "time": _now(), "summary": numbers}
        ending |= {"failure": dict(failure)} if failure else {}
        path = self.directory / "status.json"
        with writable(path):
            (self.directory / ROOM).unlink(missing_ok=True)
        write(path, JSON.put(json.dumps({**ending, "sizes": sizes}, indent=1)))

    def reopen(self) -> None:
        """Forget how the run ended, so that it continues."""
        path = self.directory / "status.json"
        with writable(path):
            path.unlink(missing_ok=True)

    def _save(self) -> None:
        facts = {name: value for name, value in asdict(self).items() if name != "directory"}
        write(self.directory / "record.json", JSON.put(json.dumps(facts, indent=1)))

    # Reading: by anyone

    def file(self) -> dict[str, Any]:
        """Read the run file or sweep file.

        It is as it was at the start. A trial's has none of the settings that its sweep imposes.

        Raises:
            ConfigError: it is missing or damaged.
        """
        path = self.directory / "run.yaml"
        try:
            text = YAML.open(path.read_bytes())
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, LOADER)):
                raise ValueError("it has aliases, which can stand for any number of values")
            file = yaml.load(text, LOADER)
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing: the settings of this run are lost.") from None
        except (Damaged, ValueError, yaml.YAMLError) as error:
            raise Damaged(f"{path} is damaged or was edited: {_line(error)}. Edit copies of it.") from None
        if not isinstance(file, dict):
            raise Damaged(f"{path} is damaged: it holds no settings.")
        return file

    def data(self) -> dict[str, Any] | None:
        """Read which images the run used, if it is known.

        Raises:
            Damaged: data.json is damaged.
        """
        try:
            return _facts(self.directory / "data.json", "Delete it")
        except FileNotFoundError:
            return None

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics, a row for each step.

        Rows are in order: {"step", "epoch", "time" in ms, and the metrics}. Several reports of one step (a loss, later
        an evaluation) are merged into one row. Workers that restart from a checkpoint report some steps again; the last
        value written counts.

        Raises:
            Damaged: a line is damaged, or lines are missing.
        """
        rows: dict[int, dict[str, Any]] = {}
        for row in self.read()[0]:
            merged = rows.setdefault(row["step"], {"step": row["step"], "epoch": None})
            merged["time"] = row["time"]
            if row["epoch"] is not None:
                merged["epoch"] = row["epoch"]
            merged.update(row["metrics"])
        return [rows[step] for step in sorted(rows)]

    def read(self, start: int = 0, *, file: str = METRICS) -> tuple[list[dict[str, Any]], int]:
        """Read the rows of METRICS or SYSTEM from byte `start` on, as written.

        Also return the byte where the next read starts. The part of a line that `start` may lie in is left out.

        Raises:
            Damaged: a line is damaged, or lines are missing at the end.
        """
        path, size = self.directory / file, self.status.get("sizes", {}).get(file, 0)  # before the rows: they may grow
        before = min(start, 1)  # byte: it shows whether a line starts at `start`
        try:
            with open(path, "rb") as opened:
                opened.seek(start - before)
                data = opened.read()
        except FileNotFoundError:
            data = b""
        first, end = data.find(b"\n") + 1 if before else 0, data.rfind(b"\n") + 1
        rows = [_row(path, line) for line in data[first:end].split(b"\n")[:-1]]
        following = start - before + max(end, before)
        if size > following:
            raise Damaged(f"{path} is damaged: its end is missing. Move {self.directory} away.")
        return rows, following

    @property
    def status(self) -> dict[str, Any]:
        """{"state", "message", "time" in ms or None, "summary", and of some failures "failure"}.

        The state is "running" until the run ends.

        Raises:
            Damaged: status.json is damaged.
        """
        try:
            status = _facts(self.directory / "status.json", "Move it away, and the run counts as interrupted")
        except FileNotFoundError:
            return {"state": "running", "message": "", "time": None, "summary": {}}
        return {**status, "summary": {name: float(value) for name, value in status["summary"].items()}}

    @property
    def state(self) -> str:
        return self.status["state"]

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do: it neither runs nor was it stopped for a resumed sweep to continue."""
        status = self.status
        return status["state"] != "running" and status["message"] not in (OVER, INTERRUPTED)

    @property
    def summary(self) -> dict[str, float]:
        return self.status["summary"]

    @property
    def last(self) -> dict[str, float]:
        """The numbers of its last row; none if it has no row."""
        return {name: value for row in self.metrics()[-1:] for name, value in row.items() if name not in PLACES}

    @property
    def artifacts(self) -> Path:
        """The folder of files to keep.

        Write under a name that begins with a dot, then rename: readers skip those.
        """
        return self.directory / "artifacts"

    @property
    def parent_directory(self) -> Path | None:
        return Path(os.path.normpath(self.directory / self.above)) if self.above else None

    @property
    def parent(self) -> "Record | None":
        return Record.open(self.parent_directory) if self.parent_directory else None

    def children(self) -> list["Record"]:
        records = sound(path.parent for path in self.directory.glob("trials/*/record.json"))
        return sorted(records, key=lambda record: (record.created, record.name))


def find_records(root: Path | str, experiment: str | None = None) -> list[Record]:
    """List every run in `root`, each parent before its children.

    Args:
        root: the folder of all runs, of one experiment or of one run.
        experiment: only the runs of this one.
    """
    records: dict[Path, Record] = {}
    for record in sound(run_directories(Path(root))):
        for each in (record, *record.children()):
            records.setdefault(each.directory, each)
    return [record for record in records.values() if experiment in (None, record.experiment)]


def sound(directories: Iterable[Path]) -> list[Record]:
    """Open the records of runs that are not damaged.

    The damaged ones are named in warnings: one of them must not hide the others.
    """
    records: list[Record] = []
    for directory in directories:
        try:
            record = Record.open(directory)
            _ = record.status  # damaged as often as the record
            records.append(record)
        except Damaged as error:
            warnings.warn(f"{error} It is left out", Skipped, stacklevel=2)
    return records


def run_directories(root: Path) -> Iterator[Path]:
    """Yield the directories of runs in a folder.

    The folder may be that of all runs, of an experiment, or of a run.
    """
    for pattern in ("record.json", "*/record.json", "*/*/record.json"):
        yield from sorted(path.parent for path in root.glob(pattern))


def _now() -> int:
    return time.time_ns() // 1_000_000


def _jsonable(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file of facts.

    Raises:
        Damaged: it is damaged.
    """
    try:
        return json.loads(JSON.open(path.read_bytes()))
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {_line(error)}. {remedy}.") from None


def _row(path: Path, line: bytes) -> dict[str, Any]:
    """Read a row of METRICS or SYSTEM.

    Raises:
        Damaged: it is damaged.
    """
    try:
        row = json.loads(LINE.open(line))
    except ValueError as error:
        number = path.read_bytes().split(b"\n").index(line) + 1
        raise Damaged(f"{path} is damaged in line {number}: {_line(error)}. Move {path.parent} away.") from None
    row["metrics"] = {name: float(value) for name, value in row["metrics"].items()}
    return row


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _cut_torn_line(rows: BinaryIO) -> None:
    """Cut off what a killed process, or a power cut, left of a last line."""
    size = rows.seek(0, os.SEEK_END)
    rows.seek(max(0, size - 1))
    if rows.read() in (b"", b"\n"):
        return
    rows.seek(max(0, size - LONGEST))
    tail = rows.read()
    rows.truncate(size - len(tail) + tail.rfind(b"\n") + 1)

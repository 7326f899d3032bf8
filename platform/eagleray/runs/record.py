"""The record of a run, in its directory.

The directory is the only source for what the run was, what it measured and how it ended.

    record.json     key, name, experiment, params, tags, where it ran (written again on resuming)
    run.yaml        the resolved run file
    data.json       the images that it used: their digest, how many there are, and the sizes in pixels that were
                    found for what run.yaml leaves open (null); that file stays as it was asked
    metrics.jsonl   one line for each report, appended while the run trains
    system.jsonl    the same for what it used of its machine, kept apart because no report compares it
    status.json     how it ended and its last numbers; absent while it runs
    artifacts/      pictures, the encoder and other files to keep
    trials/<id>/    the runs of a sweep, each a directory like this one

Training writes only here. Everything else (leaderboards, MLflow) only reads, so nothing else can slow or stop it.
Every file except those two is replaced as a whole; in them, readers skip a line that a killed process left half
written. One process at a time writes to a directory; any number may read.
"""

import json
import math
import operator
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.runs.environment import Value, environment

ENDINGS = ("finished", "failed", "stopped", "collapsed")
METRICS, SYSTEM = "metrics.jsonl", "system.jsonl"
PLACES = ("step", "epoch", "time")  # columns of every row, so no metric can have these names


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
        (directory / "artifacts").mkdir(parents=True, exist_ok=True)
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
        write_whole(directory / "run.yaml", yaml.safe_dump(dict(run), sort_keys=False, allow_unicode=True))
        record.reopen()
        record._save()
        return record

    @classmethod
    def open(cls, directory: Path | str) -> "Record":
        """Read the record in a directory.

        Raises:
            ConfigError: the directory is not that of a run, or its record is damaged.
        """
        directory = Path(directory)
        try:
            facts = json.loads((directory / "record.json").read_text())
            known = {each.name for each in fields(cls)} - {"directory"}
            return cls(directory=directory, **{name: value for name, value in facts.items() if name in known})
        except OSError as error:
            is_absent = isinstance(error, FileNotFoundError | NotADirectoryError)
            why = "it has no record.json" if is_absent else f"record.json: {error.strerror}"
            raise ConfigError(
                f"{directory} is not the directory of a run ({why}); `eagleray runs ls` lists them, as "
                "runs/EXPERIMENT/RUN"
            ) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{directory / 'record.json'} is damaged: {error}. Move it away.") from None

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
        """Add a row to METRICS or SYSTEM, written when this returns.

        `step` counts samples or optimizer steps.

        NaN and infinities are stored as strings: JSON has no numbers for them.

        Raises:
            ConfigError: a metric has the name of a column.
        """
        if taken := [name for name in metrics if name in PLACES]:
            raise ConfigError(f"A metric cannot be named {taken[0]!r}: every row has that column already.")
        row = {
            "step": operator.index(step),
            "epoch": None if epoch is None else float(epoch),
            "time": _now(),
            "metrics": {name: _jsonable(value) for name, value in metrics.items()},
        }
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with open(self.directory / file, "ab+") as rows:
            # A process killed while writing leaves a line without its end: end it, or this row is lost too.
            rows.write(b"\n" + line if _torn(rows) else line)

    def tag(self, tags: Mapping[str, str]) -> "Record":
        """Add tags.

        Some are known only later: the checkpoint's path, a sweep's finding.
        """
        tagged = replace(self, tags={**self.tags, **tags})
        tagged._save()
        return tagged

    def keep_data(self, facts: Mapping[str, Any]) -> None:
        """Write which images the run used."""
        write_whole(self.directory / "data.json", json.dumps(dict(facts), indent=1))

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
        ending: dict[str, Any] = {"state": state, "message": message, "time": _now(), "summary": numbers}
        ending |= {"failure": dict(failure)} if failure else {}
        write_whole(self.directory / "status.json", json.dumps(ending, indent=1))

    def reopen(self) -> None:
        """Forget how the run ended, so that it continues."""
        (self.directory / "status.json").unlink(missing_ok=True)

    def _save(self) -> None:
        facts = {name: value for name, value in asdict(self).items() if name != "directory"}
        write_whole(self.directory / "record.json", json.dumps(facts, indent=1))

    # Reading: by anyone

    def file(self) -> dict[str, Any]:
        """Read the run file or sweep file.

        It is as it was at the start. A trial's has none of the settings that its sweep imposes.

        Raises:
            ConfigError: it is missing or damaged.
        """
        path = self.directory / "run.yaml"
        try:
            file = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}.") from None
        if not isinstance(file, dict):
            raise ConfigError(f"{path} is damaged: it holds no settings.")
        return file

    def data(self) -> dict[str, Any] | None:
        """Read which images the run used, if it is known."""
        try:
            return json.loads((self.directory / "data.json").read_text())
        except FileNotFoundError:
            return None

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics, a row for each step.

        Rows are in order: {"step", "epoch", "time" in ms, and the metrics}. Several reports of one step (a loss, later
        an evaluation) are merged into one row. Workers that restart from a checkpoint report some steps again; the last
        value written counts.
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

        Also return the byte where the next read starts.
        """
        try:
            with open(self.directory / file, "rb") as rows:
                rows.seek(start)
                data = rows.read()
        except FileNotFoundError:
            return [], start
        whole = data[: data.rfind(b"\n") + 1]
        return [row for line in whole.split(b"\n") if (row := _parsed(line))], start + len(whole)

    @property
    def status(self) -> dict[str, Any]:
        """{"state", "message", "time" in ms or None, "summary", and of some failures "failure"}.

        The state is "running" until the run ends.

        Raises:
            ConfigError: status.json is damaged.
        """
        try:
            status = json.loads((self.directory / "status.json").read_text())
            return {**status, "summary": {name: float(value) for name, value in status["summary"].items()}}
        except FileNotFoundError:
            return {"state": "running", "message": "", "time": None, "summary": {}}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{self.directory / 'status.json'} is damaged: {error}. Move it away.") from None

    @property
    def state(self) -> str:
        return self.status["state"]

    @property
    def summary(self) -> dict[str, float]:
        return self.status["summary"]

    @property
    def artifacts(self) -> Path:
        """The folder of files to keep.

        Write under a name that begins with a dot, then rename: readers skip those.
        """
        return self.directory / "artifacts"

    @property
    def parent(self) -> "Record | None":
        return Record.open(Path(os.path.normpath(self.directory / self.above))) if self.above else None

    def children(self) -> list["Record"]:
        records = (Record.open(path.parent) for path in self.directory.glob("trials/*/record.json"))
        return sorted(records, key=lambda record: (record.created, record.name))


def find_records(root: Path | str, experiment: str | None = None) -> list[Record]:
    """List every run in `root`, each parent before its children.

    Args:
        root: the folder of all runs, of one experiment or of one run.
        experiment: only the runs of this one.
    """
    records: dict[Path, Record] = {}
    for directory in run_directories(Path(root)):
        record = Record.open(directory)
        for each in (record, *record.children()):
            records.setdefault(each.directory, each)
    return [record for record in records.values() if experiment in (None, record.experiment)]


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


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        row["metrics"] = {name: float(value) for name, value in row["metrics"].items()}
        return row
    except (ValueError, TypeError, KeyError):  # a line that was not finished
        return None


def _torn(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers find all of it or the one before."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # otherwise a power cut may leave an empty file under the new name
    os.replace(unfinished, path)

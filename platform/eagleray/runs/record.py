"""A run's directory is the truth about the run: what it was, what it measured, how it ended.

    record.json     key, name, experiment, params, tags, where it ran (written again on resuming)
    run.yaml        the resolved run file
    metrics.jsonl   one line a report, appended while the run trains
    status.json     how it ended and its last numbers; absent while it runs
    artifacts/      pictures, the encoder, whatever is worth keeping beside the numbers
    trials/<id>/    the runs of a sweep, each a directory like this one

Training writes only here. Everything else (leaderboards, MLflow) reads, so nothing else can slow or stop it.
Every file but metrics.jsonl is replaced whole; there, a line that a killed process left half written is not
read. One process writes to a directory at a time; any number may read.
"""

import json
import math
import operator
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from eagleray.contracts.errors import ConfigError

Value = str | int | float | bool | None
ENDINGS = ("finished", "failed", "stopped", "collapsed")
PLACES = ("step", "epoch", "time")  # columns of every row, so no metric's name


@dataclass(frozen=True)
class Record:
    """One run, or one sweep, in its directory. Holds record.json; the other files are read when asked for."""

    directory: Path
    key: str  # made once; by it a restarted run is known everywhere as the same run
    name: str
    experiment: str
    created: int  # milliseconds since 1970, of the first start
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    environment: Mapping[str, Value]
    above: str | None = None  # the parent's directory seen from this one, so a moved tree stays whole
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
        """Starts a run in `directory`, or takes it up again: key, start and tags then stay, its ending goes.

        Args:
            params: flat, with dotted keys: what is shown and compared (`method.temperature`).
            run: the resolved run file, plain values only; written to run.yaml.
            meanings: what each metric means that may be reported.
            uri: the MLflow store it belongs to; by default the parent's. A password in it is left out, for
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
            uri=re.sub(r"//[^/@]*@", "//", uri) if uri else parent and parent.uri,
            meanings=dict(meanings or {}),
        )
        _replace(directory / "run.yaml", yaml.safe_dump(dict(run), sort_keys=False, allow_unicode=True))
        (directory / "status.json").unlink(missing_ok=True)
        record._save()
        return record

    @classmethod
    def open(cls, directory: Path | str) -> "Record":
        """Raises ConfigError where no run lies."""
        directory = Path(directory)
        try:
            facts = json.loads((directory / "record.json").read_text())
            known = {each.name for each in fields(cls)} - {"directory"}
            return cls(directory=directory, **{name: value for name, value in facts.items() if name in known})
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(
                f"{directory} is no run directory (no record.json); runs lie in runs/<experiment>/<name>."
            ) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{directory / 'record.json'} is damaged: {error}. Move it away.") from None

    @property
    def kind(self) -> str:
        """`sweep`, or `trial` or `floor` of one; `run`: by itself."""
        return self.tags.get("kind", "run")

    # Writing, by the run itself

    def append(self, step: int, metrics: Mapping[str, float], epoch: float | None = None) -> None:
        """Adds one row; it is in the file when this returns. `step` counts samples or optimizer steps.

        NaN and infinities are kept as words: JSON has no numbers for them.
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
        with open(self.directory / "metrics.jsonl", "ab+") as file:
            # A process killed while writing left a line without its end: end it, or this row is lost with it.
            file.write(b"\n" + line if _torn(file) else line)

    def tag(self, tags: Mapping[str, str]) -> "Record":
        """Adds to the tags, which may be learnt late (the checkpoint's place, a sweep's finding)."""
        grown = replace(self, tags={**self.tags, **tags})
        grown._save()
        return grown

    def finish(self, state: str, message: str = "", summary: Mapping[str, float] | None = None) -> None:
        """Says how the run ended: finished, failed, stopped (by a scheduler or a person) or collapsed."""
        if state not in ENDINGS:
            raise ValueError(f"a run ends as one of {ENDINGS}, not {state!r}")
        numbers = {name: _jsonable(value) for name, value in (summary or {}).items()}
        ending = {"state": state, "message": message, "time": _now(), "summary": numbers}
        _replace(self.directory / "status.json", json.dumps(ending, indent=1))

    def _save(self) -> None:
        facts = {name: value for name, value in asdict(self).items() if name != "directory"}
        _replace(self.directory / "record.json", json.dumps(facts, indent=1))

    # Reading, by anyone

    def file(self) -> dict[str, Any]:
        """Read the run or sweep file that was kept when it started."""
        return yaml.safe_load((self.directory / "run.yaml").read_text(encoding="utf-8"))

    def metrics(self) -> list[dict[str, Any]]:
        """One row a step, by step: {"step", "epoch", "time" in ms, and the metrics}. The last written holds.

        A group of workers that restarts from a checkpoint reports some steps again; several reports of one
        step (a loss, later an evaluation) make one row.
        """
        rows: dict[int, dict[str, Any]] = {}
        for row in self.read()[0]:
            merged = rows.setdefault(row["step"], {"step": row["step"], "epoch": None})
            merged["time"] = row["time"]
            if row["epoch"] is not None:
                merged["epoch"] = row["epoch"]
            merged.update(row["metrics"])
        return [rows[step] for step in sorted(rows)]

    def read(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The rows from byte `start` on, as they were written, and the byte where the next read starts."""
        try:
            with open(self.directory / "metrics.jsonl", "rb") as file:
                file.seek(start)
                data = file.read()
        except FileNotFoundError:
            return [], start
        whole = data[: data.rfind(b"\n") + 1]
        return [row for line in whole.split(b"\n") if (row := _parsed(line))], start + len(whole)

    @property
    def status(self) -> dict[str, Any]:
        """{"state", "message", "time" in ms or None, "summary"}; of a run that goes on: "running"."""
        try:
            status = json.loads((self.directory / "status.json").read_text())
        except FileNotFoundError:
            return {"state": "running", "message": "", "time": None, "summary": {}}
        return {**status, "summary": {name: float(value) for name, value in status["summary"].items()}}

    @property
    def state(self) -> str:
        return self.status["state"]

    @property
    def summary(self) -> dict[str, float]:
        return self.status["summary"]

    @property
    def artifacts(self) -> Path:
        """Put files to keep in here, in one move (write under a name that begins with a dot, then rename)."""
        return self.directory / "artifacts"

    @property
    def parent(self) -> "Record | None":
        return Record.open(Path(os.path.normpath(self.directory / self.above))) if self.above else None

    def children(self) -> list["Record"]:
        found = (Record.open(path.parent) for path in self.directory.glob("trials/*/record.json"))
        return sorted(found, key=lambda record: (record.created, record.name))


def find_records(root: Path | str, experiment: str | None = None) -> list[Record]:
    """Every run in `root` (runs, one experiment of it, or one run); each parent before its children."""
    found: dict[Path, Record] = {}
    for directory in _run_directories(Path(root)):
        record = Record.open(directory)
        for each in (record, *record.children()):
            found.setdefault(each.directory, each)
    return [record for record in found.values() if experiment in (None, record.experiment)]


def environment() -> dict[str, Value]:
    """What a result depends on beside its run file: versions, the working directory's commit, hardware.

    What cannot be known is None. GPUs are named only where torch is loaded already: loading it takes seconds. The
    commit is asked for once a process, whose code is that of its start.
    """
    packages = ("eagleray", "torch", "torchvision", "timm", "ray", "mlflow")
    here = Path.cwd()
    changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "commit": _git(here, "rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else changed != "",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": _gpus(),
        "user": os.environ.get("USER") or os.environ.get("LOGNAME"),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a disk too slow to compare the files on
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _gpus() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _run_directories(root: Path) -> Iterator[Path]:
    for pattern in ("record.json", "*/record.json", "*/*/record.json"):
        yield from sorted(path.parent for path in root.glob(pattern))


def _now() -> int:
    return time.time_ns() // 1_000_000


def _jsonable(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        row["metrics"] = {name: float(value) for name, value in row["metrics"].items()}
        return row
    except (ValueError, TypeError, KeyError):  # a line that was never finished
        return None


def _torn(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with open(unfinished, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut leaves the new name on an empty file
    os.replace(unfinished, path)

"""Look through run directories, for people and without a server.

What is damaged or half written is named, and does not hide the rest.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagleray.config.run import epochs_of
from eagleray.contracts.errors import ConfigError
from eagleray.runs.record import Record, run_directories
from eagleray.storage.mirror import records_at_hand, run_at_hand

TAIL = 65536  # bytes at the end of metrics.jsonl that hold its last rows
TRACES = ("lock", "run.yaml", "artifacts", "trials", "metrics.jsonl")  # a folder with one of these was to be a run


@dataclass(frozen=True)
class Found:
    """Runs and sweeps of a folder, the newest first."""

    records: list[Record]
    damaged: dict[Path, str] = field(default_factory=dict)  # directory -> why it cannot be read


def browse(root: Path, *, trials: bool = False) -> Found:
    """Find the runs and sweeps in a folder.

    Args:
        root: the folder of all runs, of one experiment, or of one run.
        trials: also find the trials and floors of sweeps.
    """
    records, damaged = dict[Path, Record](), dict[Path, str]()
    for directory in _candidates(root, trials=trials):
        try:
            record = Record.open(directory)
            _ = (
                record.status,
                epochs_done(record),
                epochs_in_all(directory, record.params),
            )  # damaged as often as the record
            records[directory] = record
        except (ConfigError, OSError) as error:
            damaged[directory] = str(error)
    return Found(sorted(records.values(), key=lambda record: -record.created), damaged)


def _candidates(root: Path, *, trials: bool) -> list[Path]:
    whole = list(run_directories(root))
    known = set(whole)
    for folder in [*root.glob("*"), *root.glob("*/*")]:
        inside = any(above in known for above in folder.parents)
        if folder not in known and not inside and _was_to_be_a_run(folder):
            whole.append(folder)
    if trials:
        whole += [path.parent for each in list(whole) for path in sorted(each.glob("trials/*/record.json"))]
    return list(dict.fromkeys(whole))


def _was_to_be_a_run(folder: Path) -> bool:
    """Return whether a folder has traces of a run, or cannot be looked into."""
    try:
        return any((folder / name).exists() for name in TRACES)
    except PermissionError:
        return True


def open_run(directory: Path) -> Record:
    """Open the record of one run.

    Raises:
        ConfigError: the directory is not that of a run, or it is a sweep.
    """
    record = Record.open(run_at_hand(directory))
    if record.kind == "sweep":
        raise ConfigError(f"{directory} is a sweep; name one of its runs, such as {directory / 'trials'}/…")
    return record


def epochs_done(record: Record) -> int | None:
    """Return the epochs that a run has recorded.

    None: it has recorded none.
    """
    try:
        size = (record.directory / "metrics.jsonl").stat().st_size
    except FileNotFoundError:
        return None
    rows, _ = record.read(max(0, size - TAIL))
    epochs = [row["epoch"] for row in rows if row["epoch"] is not None]
    return int(epochs[-1]) if epochs else None


def epochs_in_all(directory: Path, settings: Mapping[str, Any]) -> int | None:
    """Return the epochs that a run is to have, the last of which may be short.

    Args:
        directory: of the run; it may be missing.
        settings: of the run, from its file or its record.

    Returns:
        None: they follow from steps, and its images are not known yet.
    """
    if settings.get("steps") is None:
        return settings.get("epochs")
    known = (directory / "data.json").exists() and (directory / "record.json").exists()
    facts = Record.open(directory).data() if known else None
    return epochs_of(settings, (facts or {}).get("images", {}).get("train"))


def directory_of(text: str, runs: str) -> Path | None:
    """Return the directory that a person means, if there is one.

    Args:
        text: a path, or a path in the folder of all runs (`temperature`, `temperature/20260101-120000`).
        runs: the folder of all runs.
    """
    return next((path for path in map(records_at_hand, (text, f"{runs}/{text}")) if os.path.isdir(path)), None)

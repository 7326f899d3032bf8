"""What a run's directory knows of its sending: sent.json, beside the record.

    {store: {"run_id": …, "fingerprint": the directory's when all was sent, "files": {path: [size, time]}}}

It saves asking the store again, and tells without a store what is unsent. Losing it loses nothing.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from eagleray.runs.record import Record
from eagleray.tracking.store import without_password

Note = dict[str, Any]


def is_sent(record: Record, uri: str) -> bool:
    """Whether all that is in the directory was sent to this store."""
    note = read_note(record, without_password(uri))
    return note is not None and note["fingerprint"] == fingerprint(record)


def read_note(record: Record, store: str) -> Note | None:
    return _notes(record).get(store)


def write_note(record: Record, store: str, note: Note) -> None:
    unfinished = record.directory / f".sent.json.{os.getpid()}"
    unfinished.write_text(json.dumps({**_notes(record), store: note}, indent=1))
    os.replace(unfinished, record.directory / "sent.json")


def _notes(record: Record) -> dict[str, Note]:
    try:
        return json.loads((record.directory / "sent.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}


def fingerprint(record: Record) -> str:
    """Changes whenever a file of the run does."""
    names = ("record.json", "metrics.jsonl", "status.json")
    parts = {name: _size_and_time(record.directory / name) for name in names} | files(record)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def files(record: Record) -> dict[str, list[int]]:
    """The files to send, by path in the directory; names that begin with a dot are still being written."""
    paths = [record.directory / "run.yaml", *sorted(record.artifacts.rglob("*"))]
    names = {path.relative_to(record.directory): path for path in paths if path.is_file()}
    shown = {name: path for name, path in names.items() if not any(part[0] == "." for part in name.parts)}
    return {name.as_posix(): _size_and_time(path) for name, path in shown.items()}


def _size_and_time(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return []
    return [facts.st_size, facts.st_mtime_ns]

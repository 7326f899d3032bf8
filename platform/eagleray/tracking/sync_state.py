"""The sync state of a run: sent.json in its directory.

    {store: {"run_id": …, "fingerprint": the directory's when all was sent, "stamp": of that moment (`send.py`),
             "files": {path: [size, time]}, "page": where MLflow's pages show it}}

It shows what is unsent without a store, and saves questions to the store. If the file is lost, nothing else is.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from eagleray.contracts.address import without_password
from eagleray.contracts.files import JSON, write
from eagleray.runs.record import METRICS, SYSTEM, Record

Note = dict[str, Any]


def is_sent(record: Record, uri: str) -> bool:
    """Return whether everything was sent to this store."""
    note = read_note(record, without_password(uri))
    return note is not None and note["fingerprint"] == fingerprint(record)


def page_of(directory: Path, uri: str) -> str | None:
    """Return the path of the page that shows a sweep or a run; None: it was not sent to this store."""
    note = read_note(Record.open(directory), without_password(uri))
    return None if note is None else note.get("page")


def read_note(record: Record, store: str) -> Note | None:
    return _notes(record).get(store)


def write_note(record: Record, store: str, note: Note) -> None:
    notes = {**_notes(record), store: note}
    write(record.directory / "sent.json", JSON.put(json.dumps(notes, indent=1)))


def _notes(record: Record) -> dict[str, Note]:
    try:
        return json.loads(JSON.open((record.directory / "sent.json").read_bytes()))
    except (FileNotFoundError, ValueError):
        return {}


def traces(directory: Path, above: Path | None) -> dict[str, list[int]]:
    """Return where the changes of a run show, without opening it: sizes and times of its own files.

    Args:
        directory: of the run.
        above: of its sweep: a trial is compared with the floors when that has ended.
    """
    names = ["record.json", METRICS, SYSTEM, "status.json", "data.json", "artifacts"]
    paths = {name: f"{directory}/{name}" for name in names}
    if above:
        paths["above"] = f"{above}/status.json"
    return {name: _size_and_time(path) for name, path in paths.items()}


def fingerprint(record: Record) -> str:
    """Return a hash that changes with the run's files."""
    above = record.directory / record.above if record.above else None
    parts = {**traces(record.directory, above), "artifacts": [], **files(record)}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def files(record: Record) -> dict[str, list[int]]:
    """List the files to send with size and time.

    Those with names that begin with a dot are still being written.
    """
    paths = [record.directory / "run.yaml", *sorted(record.artifacts.rglob("*"))]
    names = {path.relative_to(record.directory): path for path in paths if path.is_file()}
    complete = {name: path for name, path in names.items() if not any(part[0] == "." for part in name.parts)}
    return {name.as_posix(): _size_and_time(path) for name, path in complete.items()}


def _size_and_time(path: Path | str) -> list[int]:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return []
    return [facts.st_size, facts.st_mtime_ns]

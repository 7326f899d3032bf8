"""A folder that is the copy of an address, kept in step with it.

Beside the copy `name` lies `.name.copy`: of each file its size and time when it was equal to an object, and the tag of
that object. So a file that was changed here is told from an object that was changed there. Of the two the object wins:
another machine has gone on with the run.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from eagleray.contracts.files import writable
from eagleray.contracts.report import Failed
from eagleray.storage.store import Item, fetch, items_at, remove, send

Part = Callable[[str], bool]  # which files are meant, by their names relative to the copy
OWN = re.compile(
    r"(^|/)(lock|sync\.lock|\.room|\.new\.[^/]*|\.[^/]*\.\d+|[^/]*\.tmp|\.[^/]*\.(copy|turn|held))$|^(ray|trials)/"
)
REMOVED = re.compile(r"^(checkpoints/|status\.json$|\.)")  # what a run removes; a person may have removed other files
LAST = ("metrics.jsonl", "checkpoints/", "status.json")  # sent after the rest, in this order


def everything(name: str) -> bool:
    """Return true: all files are meant."""
    return True


def of_run(name: str) -> bool:
    """Return whether other machines need a file of a run: none of its trials, and nothing unfinished."""
    return not OWN.search(name)


def of_record(name: str) -> bool:
    """Return whether a run's record reads a file: no checkpoints, pictures and encoders."""
    return of_run(name) and not name.startswith(("checkpoints/", "artifacts/", "exports/"))


class Notes:
    """What is known of the files of a copy: {name: [size, time, tag of the object]}."""

    def __init__(self, copy: Path):
        self.copy, self.path = copy, copy.with_name(f".{copy.name}.copy")
        self.files: dict[str, Any] = {}  # without them, or without the copy, all is fetched again
        with suppress(FileNotFoundError, ValueError):
            self.files = json.loads(self.path.read_bytes()) if copy.exists() else {}

    def save(self) -> None:
        """Write them down; if a power cut takes them, all is fetched again."""
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with writable(self.path):
            beside.write_text(json.dumps(self.files))
            beside.replace(self.path)

    def keep(self, name: str, tag: str, state: list[int] | None = None) -> None:
        """Note that a file is equal to the object of a tag; "" is that of one whose tag is not known yet."""
        self.files[name] = [*(state or state_of(self.copy / name) or [0, 0]), tag]

    def forget(self, names: Iterable[str]) -> None:
        """Note that files and objects are gone."""
        for name in names:
            self.files.pop(name, None)

    def is_equal(self, name: str, item: Item) -> bool:
        """Return whether an object is still the one to which a file was equal."""
        size, _, tag = self.files.get(name) or (None, None, None)
        return tag == item.tag or (tag == "" and size == item.size)

    def is_removed(self, name: str) -> bool:
        """Return whether a run has removed a file that was equal to an object."""
        return name in self.files and bool(REMOVED.search(name)) and not (self.copy / name).exists()

    def is_changed(self, name: str) -> bool:
        """Return whether a file is another than the one that was equal to an object."""
        return name not in self.files or state_of(self.copy / name) != self.files[name][:2]


def pull(copy: Path, part: Part = everything, *, listed: dict[str, Item] | None = None, is_mine: bool = False) -> None:
    """Bring what is at the address and not in the copy, and remove what is no longer there.

    Args:
        copy: of the address. The caller keeps others from it.
        part: of the copy that is meant; the rest is left alone.
        listed: what is at the address, if it was listed already.
        is_mine: keep what was changed here, as long as nothing was changed there.

    Raises:
        Failed: the store does not answer, or refuses, or the disk is full.
    """
    there = {name: item for name, item in (items_at(copy) if listed is None else listed).items() if part(name)}
    notes = Notes(copy)
    before = {name for name in notes.files if part(name)}
    moved = [name for name, item in there.items() if not notes.is_equal(name, item)]
    gone = before - there.keys()
    is_behind = bool(moved or gone) or not is_mine
    lacking = {*moved, *(name for name in there if is_behind and notes.is_changed(name))}
    lacking |= {name for name in there if not (copy / name).is_file() and not (is_mine and notes.is_removed(name))}
    for name in before & there.keys() - lacking:
        notes.keep(name, there[name].tag, notes.files[name][:2])  # its tag may be new to us
    for some in fetch(copy, sorted(lacking)):
        for name in some:
            notes.keep(name, there[name].tag)
        notes.save()
    here = {name for name in names_in(copy) if part(name)} if is_behind else set()
    for name in {*gone, *here} - there.keys():
        (copy / name).unlink(missing_ok=True)
    notes.forget(gone)
    if there or before:
        notes.save()


def push(copy: Path) -> None:
    """Send what is in a run's copy and not at its address, and remove there what is no longer here.

    In this order a reader of the address finds no checkpoint whose rows are missing, and no end without the rest.

    Raises:
        Failed: the store does not answer, or refuses.
    """
    notes = Notes(copy)
    checkpoints = [name for name in names_in(copy) if name.startswith("checkpoints/") and of_run(name)]
    here = [*checkpoints, *(name for name in names_in(copy) if of_run(name) and not name.startswith("checkpoints/"))]
    gone = [name for name in notes.files if of_run(name) and notes.is_removed(name)]
    if "status.json" in gone:  # it was opened again
        remove([copy / "status.json"])
    for name in sorted(filter(notes.is_changed, here), key=_turn):
        if (state := state_of(copy / name)) is None:
            continue  # removed meanwhile
        notes.keep(name, "", state)
        notes.save()
        try:
            send(copy / name)
        except Failed:
            notes.forget([name])
            notes.save()
            if (copy / name).exists():
                raise
    if gone:
        remove(copy / name for name in gone)
        notes.forget(gone)
        notes.save()


def is_sent(copy: Path) -> bool:
    """Return whether the address has all of a run's copy, as far as is known here."""
    notes = Notes(copy)
    return not any(notes.is_changed(name) for name in names_in(copy) if of_run(name))


def names_in(copy: Path) -> list[str]:
    """List the files of a copy, by names relative to it; "" is the copy itself, if it is a file."""
    if copy.is_file():
        return [""]
    return sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())


def state_of(path: Path) -> list[int] | None:
    """Return the size of a file, and when it was changed; None: it is not there."""
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [facts.st_size, facts.st_mtime_ns]


def _turn(name: str) -> int:
    return next((turn for turn, start in enumerate(LAST, 1) if name.startswith(start)), 0)

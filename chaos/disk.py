"""A disk that forgets: what a folder may look like after a power cut, from the calls that wrote to it.

`Recorder` notes every change in a folder and every fsync. `crashes` then yields what a power cut may leave after each
of them. A write that was not forced to the disk may be missing, cut at any block, or (only in the model `any order`)
have zeros in the place of blocks. A name that was not forced may be missing, and one that was removed may be there
again:

    ordered    as ext4 keeps them: in their order, and whatever is forced takes all earlier names with it
    any order  each alone, and a name is safe only when its own folder was forced
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

BLOCK = 512  # bytes: what a disk writes at once, at least; smaller files are cut in eight
ALL_OF = 4  # pending names of which every combination is tried; of more, those that lack or have one, or end early
MODELS = ("ordered", "any order")
FOLDER = -1  # in place of a file's number

Tree = dict[str, bytes | None]  # path -> content; None: a folder


@dataclass(frozen=True)
class Wrote:
    """A file has another content."""

    file: int
    content: bytes


@dataclass(frozen=True)
class Named:
    """A path names another file, or none."""

    path: str
    file: int | None
    before: str | None = None  # the name that it had


@dataclass(frozen=True)
class Forced:
    """A file's content, or a folder's names, are on the disk."""

    what: int | str


@dataclass(frozen=True)
class Acknowledged:
    """Somebody was told that something is kept; None: what was told under this name no longer holds."""

    name: str
    fact: Any


Event = Wrote | Named | Forced | Acknowledged


@dataclass
class Recorder:
    """Records what this process does in a folder.

    The calls that change names and those that force are recorded one by one; contents are read again at each of them.
    So it does not matter who wrote them, in Python or not.
    """

    root: Path
    left_out: re.Pattern[str] = re.compile("(?!)")  # names of files that nobody needs after a crash
    events: list[Event] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)
    _contents: dict[int, bytes] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)  # inode -> number of a file that exists
    _lock: Any = field(default_factory=threading.RLock)

    def __enter__(self) -> "Recorder":
        calls = ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "truncate")
        self._patches = [patch.object(os, name, self._watched(getattr(os, name), name)) for name in calls]
        for each in self._patches:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._patches:
            each.stop()
        self._look()

    def acknowledge(self, name: str, fact: Any) -> None:
        """Note that from now on something must be found."""
        with self._lock:
            self._look()
            self.events.append(Acknowledged(name, fact))

    def _watched(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*arguments: Any, **more: Any) -> Any:
            with self._lock:
                self._look()
                result = call(*arguments, **more)
                self._look()
                if name == "fsync":
                    self._force(arguments[0])
                return result

        return watched

    def _force(self, descriptor: int) -> None:
        place, inode = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_ino
        if inode in self._numbers:
            self.events.append(Forced(self._numbers[inode]))
        elif Path(place).is_relative_to(self.root) and os.path.isdir(place):
            self.events.append(Forced(os.path.relpath(place, self.root)))

    def _look(self) -> None:
        """Compare the folder with what was known of it."""
        names: dict[str, int] = {}
        contents: dict[int, bytes] = {}
        for folder, below, files in os.walk(self.root):
            place = os.path.relpath(folder, self.root)
            names |= {os.path.normpath(f"{place}/{each}"): FOLDER for each in below}
            for each in files:
                if self.left_out.match(each):
                    continue
                with open(f"{folder}/{each}", "rb") as file:
                    number = self._numbers.setdefault(os.fstat(file.fileno()).st_ino, len(self._contents))
                    contents[number] = file.read()
                names[os.path.normpath(f"{place}/{each}")] = number
                self._contents.setdefault(number, b"")
        had = {number: path for path, number in self._names.items() if names.get(path) != number}
        new = sorted(path for path, number in names.items() if self._names.get(path) != number)
        self.events += [
            Named(path, names[path], had.get(names[path]) if names[path] != FOLDER else None) for path in new
        ]
        moved = {event.before for event in self.events[-len(new) :] if isinstance(event, Named)} if new else set()
        gone = sorted((path for path in self._names if path not in names and path not in moved), reverse=True)
        self.events += [Named(path, None) for path in gone]
        for number, content in contents.items():
            if content != self._contents[number]:
                self.events.append(Wrote(number, content))
                self._contents[number] = content
        self._names = names
        self._numbers = {inode: number for inode, number in self._numbers.items() if number in contents}


@dataclass(frozen=True)
class Crash:
    """What a power cut has left."""

    after: int  # events
    model: str
    tree: Tree
    acknowledged: dict[str, Any]


def crashes(events: list[Event]) -> Iterator[Crash]:
    """Yield all that power cuts may leave, each with all that had been acknowledged by then, and each once."""
    acknowledged: dict[str, Any] = {}
    seen, epoch = set[tuple[str, int, frozenset[Any]]](), 0
    for after in range(len(events) + 1):
        if after and isinstance(last := events[after - 1], Acknowledged) and acknowledged.get(last.name) != last.fact:
            acknowledged, epoch = {**acknowledged, last.name: last.fact}, epoch + 1
        for model in MODELS:
            for tree in states(events[:after], model):
                if (key := (model, epoch, frozenset(tree.items()))) not in seen:
                    seen.add(key)
                    told = {name: fact for name, fact in acknowledged.items() if fact is not None}
                    yield Crash(after, model, tree, told)


def states(events: list[Event], model: str) -> Iterator[Tree]:
    """Yield what a power cut after the last of these events may leave; some states several times."""
    names = [(place, event) for place, event in enumerate(events) if isinstance(event, Named)]
    pending = [place for place, event in names if not _is_safe(event, events[place + 1 :], model)]
    contents = _contents(events, model)
    newest = {number: versions[-1] for number, versions in contents.items()}
    oldest = {number: versions[0] for number, versions in contents.items()}
    for chosen in _choices(pending, model):
        named = _named([event for place, event in names if place in chosen or place not in pending])
        torn = [number for number in named.values() if number != FOLDER and len(contents[number]) > 1]
        for others in (newest, oldest):
            yield _tree(named, others)
            for number in torn:
                yield from (_tree(named, {**others, number: version}) for version in contents[number])


def _is_safe(event: Named, later: list[Event], model: str) -> bool:
    """Return whether a name was forced to the disk by one of the later events."""
    forced = [each.what for each in later if isinstance(each, Forced)]
    return bool(forced) if model == "ordered" else (os.path.dirname(event.path) or ".") in forced


def _choices(pending: list[int], model: str) -> Iterator[set[int]]:
    """Yield which of the pending names are on the disk."""
    yield from (set(pending[:count]) for count in range(len(pending) + 1))
    if model == "ordered":
        return
    if len(pending) <= ALL_OF:
        sizes = range(len(pending) + 1)
        yield from (set(each) for size in sizes for each in combinations(pending, size))
        return
    for one in pending:
        yield {one}
        yield {*pending} - {one}


def _contents(events: list[Event], model: str) -> dict[int, list[bytes]]:
    """Return what each file may hold, what was forced last first, what was written last at the end."""
    found: dict[int, list[bytes]] = {}
    for event in events:
        if isinstance(event, Named) and event.file not in (None, FOLDER):
            found.setdefault(event.file, [b""])
        elif isinstance(event, Wrote):
            before = found.setdefault(event.file, [b""])
            found[event.file] = [*before, *_torn(before[-1], event.content, model), event.content]
        elif isinstance(event, Forced) and event.what in found:
            found[event.what] = found[event.what][-1:]
    return found


def _torn(before: bytes, after: bytes, model: str) -> Iterator[bytes]:
    kept = len(before) if after.startswith(before) else 0
    more = after[kept:]
    block = min(BLOCK, max(1, len(more) // 8))
    yield from (after[: kept + end] for end in range(block, len(more), block))
    if model == "any order":
        yield from (after[: kept + end] + bytes(len(more) - end) for end in range(0, len(more), block))


def _named(events: list[Named]) -> dict[str, int]:
    names: dict[str, int] = {}
    for event in events:
        if event.before is not None and names.get(event.before) == event.file:
            del names[event.before]
        if event.file is None:
            names.pop(event.path, None)
        else:
            names[event.path] = event.file
    return {path: file for path, file in names.items() if all(names.get(str(each)) == FOLDER for each in _above(path))}


def _above(path: str) -> list[Path]:
    return list(Path(path).parents)[:-1]


def _tree(names: dict[str, int], contents: dict[int, bytes]) -> Tree:
    return {path: None if number == FOLDER else contents[number] for path, number in names.items()}


def lay_out(tree: Tree, folder: Path) -> None:
    """Make the folders and files of a tree in an empty folder."""
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)

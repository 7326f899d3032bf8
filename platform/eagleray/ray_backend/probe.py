"""Look at every node of a cluster before anything starts there.

A node that sees no shared folder, other images or another version would cost each of its trials three tries.
"""

import json
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eagleray.config import Run, read_run
from eagleray.config.registry import Declaration
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import address_of, located, shared
from eagleray.contracts.report import Failed
from eagleray.data.facts import Files, files_of
from eagleray.runs.environment import version_of
from eagleray.runs.preflight import run_paths
from eagleray.storage.mirror import told
from eagleray.storage.store import items_at, read, remove, write

PATIENCE = 120  # seconds in which a node must answer
COMPARED = ("eagleray", "ray", "torch")
SHARE = "set tracking.runs to a folder that all machines share"


@dataclass(frozen=True)
class Sight:
    """What one machine sees of what runs need."""

    versions: dict[str, str | None]
    lacks: tuple[str, ...]
    files: dict[str, Files]  # of each source of images, by its settings
    note: str | None  # what it read in the folder of the runs


def check_nodes(runs: Iterable[Run], directory: Path) -> None:
    """Refuse to start where a node lacks what the runs need.

    These are the folder of the runs, images, plugins, and equal versions.

    Args:
        runs: that will train.
        directory: of the run or sweep.

    Raises:
        ConfigError: a sentence for each thing that is missing, with the nodes where it is.
    """
    needed, text = _distinct(runs), secrets.token_hex()
    notes = {node["NodeID"]: directory / f".probe-{secrets.token_hex(8)}" for node in _nodes()}
    try:
        for path in notes.values():
            _write(path, text)
        task = ray.remote(num_cpus=0, max_retries=0)(_look())
        on = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in notes}
        answers = {
            node: task.options(scheduling_strategy=on[node]).remote(needed, shared(path))
            for node, path in notes.items()
        }
        here = look(needed, shared(next(iter(notes.values()))))
        lacks: dict[str, list[str]] = {}
        for node, path in notes.items():
            for lack in _lacks(answers[node], here, text, path):
                lacks.setdefault(lack, []).append(_name(node))
    finally:
        for path in notes.values():
            for each in (path, _answer(path)):
                _remove(each)
    if lacks:
        raise ConfigError("\n".join(f"{lack} (on {', '.join(nodes)})" for lack, nodes in lacks.items()))


def look(needed: Sequence[dict[str, Any]], note: str) -> Sight:
    """Look at what this machine has of what runs need, and answer a note in their folder.

    Args:
        needed: run files.
        note: a file that the driver has written; the answer is written beside it.
    """
    lacks, files = list[str](), dict[str, Files]()
    for file in needed:
        try:
            run = read_run(file)
            for plugin in _plugins(run):
                plugin.load()
            lacks += [f"{key}={shared(path)} does not exist" for key, path in run_paths(run) if not _is_there(path)]
            files[json.dumps(file["data"])] = files_of(run)
        except ConfigError as error:
            lacks.append(str(error))
    versions = {"python": platform.python_version(), **{name: version_of(name) for name in COMPARED}}
    place, text = Path(located(note)), None
    try:
        text = _read(place)
        _write(_answer(place), text)
    except OSError:
        pass  # the driver finds no answer
    except Failed as error:
        lacks.append(str(error).replace(str(address_of(place)), str(address_of(place.parent))))
    return Sight(versions, tuple(dict.fromkeys(lacks)), files, text)


def _look() -> Callable[[Sequence[dict[str, Any]], str], Sight | str]:
    """Return a function that Ray sends as it is, not by its name: a node may have no eagleray."""

    module = __name__

    def looked(needed: Sequence[dict[str, Any]], note: str) -> Sight | str:
        try:
            there = import_module(module)
        except ImportError as error:
            return f"eagleray cannot be imported ({error}): install it, or use `eagleray submit`, which sends it"
        return there.look(needed, note)

    return looked


def _lacks(answer: ray.ObjectRef, here: Sight, text: str, note: Path) -> Iterator[str]:
    """Yield what a node lacks, in phrases."""
    try:
        seen = ray.get(answer, timeout=PATIENCE)
    except GetTimeoutError:
        yield f"no answer in {PATIENCE} seconds: look at the node, or remove it from the cluster"
        return
    except RayError as error:
        yield f"the node cannot run a task ({str(error).strip().splitlines()[0]})"
        return
    if isinstance(seen, str):
        yield seen
        return
    for name, version in here.versions.items():
        if seen.versions[name] != version:
            yield f"{name} is {seen.versions[name] or 'missing'}, and {version} where this starts: install the same"
    if seen.note != text:
        if address_of(note) is None:  # of a store the node itself says what it answers
            yield f"{note.parent} is not the folder of that name where this starts: {SHARE}"
    elif not _is_there(_answer(note)):
        yield f"{note.parent} cannot be written: {SHARE}"
    yield from seen.lacks
    for data, files in seen.files.items():
        if (own := here.files.get(data)) not in (None, files):
            name, root = (json.loads(data).get(key, "") for key in ("name", "root"))
            other = f"{files.count:,} files, and {own.count:,}" if files.count != own.count else "other files than"
            yield f"data={name} {root} has {other} where this starts: copy the same files to every node"


def _write(path: Path, text: str) -> None:
    if address_of(path) is not None:
        write(path, text.encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _read(path: Path) -> str:
    return path.read_text() if address_of(path) is None else read(path).decode()


def _remove(path: Path) -> None:
    if address_of(path) is None:
        path.unlink(missing_ok=True)
    else:
        remove([path])


def _is_there(path: Path) -> bool:
    """Return whether there is something at a path, or at the address of which it is the copy."""
    if address_of(path) is None:
        return path.exists()
    with told():
        return bool(items_at(path))


def _distinct(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return the files of runs that need different things."""
    different: dict[str, dict[str, Any]] = {}
    for run in runs:
        needs = [file["data"] for file in [run.file()]], [each.module for each in _plugins(run)], [*run_paths(run)]
        different.setdefault(json.dumps(needs, default=str), run.file())
    return list(different.values())


def _plugins(run: Run) -> list[Declaration]:
    """Return what a run uses that Eagleray does not bring."""
    sections = [section.declaration for section in run.chosen.values()]
    return [
        each
        for each in (*sections, *run.evaluate.evaluators.values())
        if each.module.partition(".")[0] not in ("eagleray", "eagleray_methods")
    ]


def _nodes() -> list[dict[str, Any]]:
    """Return the nodes that can run something."""
    return [node for node in ray.nodes() if node["Alive"] and {"CPU", "GPU"} & node["Resources"].keys()]


def _name(node: str) -> str:
    known = next(each for each in ray.nodes() if each["NodeID"] == node)
    return f"node {known['NodeManagerHostname']} {known['NodeManagerAddress']}"


def _answer(note: Path) -> Path:
    return note.with_name(f"{note.name}-answer")

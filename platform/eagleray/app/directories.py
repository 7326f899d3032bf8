"""The directories of runs and sweeps: new ones, and those to resume or extend."""

import re
import time
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from eagleray.config import Run, Sweep, read_run, validated
from eagleray.config.run import leaves
from eagleray.config.search_points import trial_count
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import force, make_folder, writable
from eagleray.contracts.paths import located
from eagleray.runs.failures import may_resume
from eagleray.runs.record import Record, sound
from eagleray.storage.mirror import records_at_hand

MAY_CHANGE = ("concurrent", "question", "budget", "keep")  # sections of a sweep that may change when it is resumed

REFUSAL = "{}: set tracking.runs to another folder"


def folder_of(runs: str, experiment: str) -> Path:
    """Return the folder of an experiment's runs."""
    return Path(located(runs)) / re.sub(r"[^\w.-]+|^\.+", "-", experiment)


def new_directory(folder: Path, *words: str) -> Path:
    """Create the directory of a new run or sweep.

    Of several that start within a second, each gets its own.

    Raises:
        ConfigError: it cannot be created.
    """
    make_folder(folder, REFUSAL)
    name = "-".join([time.strftime("%Y%m%d-%H%M%S"), *words])
    names = chain([name], (f"{name}-{again}" for again in count(2)))
    return next(folder / each for each in names if _is_created(folder / each))


def _is_created(directory: Path) -> bool:
    """Create a directory, unless it exists; in one step, so that only one of several processes can."""
    with writable(directory, REFUSAL):
        try:
            directory.mkdir()
        except FileExistsError:
            return False
        force(directory.parent)
        return True


def newest_unfinished(folder: Path) -> Path:
    """Return the directory of the newest interrupted run or sweep.

    Raises:
        ConfigError: there is no such directory.
    """
    records = _newest_first(records_at_hand(folder))
    for record in records:
        if may_resume(record):
            return record.directory
    again = any(record.kind == "sweep" for record in records)
    remedy = "--extend adds values, seeds or trials to a finished sweep" if again else "leave --resume out"
    raise ConfigError(f"there is nothing unfinished in {folder} to resume; {remedy}")


def newest_sweep(folder: Path) -> Path:
    """Return the directory of the newest sweep.

    Raises:
        ConfigError: there is no sweep.
    """
    for record in _newest_first(records_at_hand(folder)):
        if record.kind == "sweep":
            return record.directory
    raise ConfigError(f"there is no sweep in {folder} to extend; leave --extend out")


def resumable_run(directory: Path, asked: Mapping[str, Any], uri: str | None = None) -> Run:
    """Return the run that was started in a directory.

    Its record has no password, so `uri` is that of its store if it is given again.

    Raises:
        ConfigError: one of the settings differs from the recorded one.
    """
    run = read_run(Record.open(directory).file())
    # Compare resolved values: in them a relative path has become an absolute one.
    now, before = dict(leaves(validated(Run, asked).file())), dict(leaves(run.file()))
    _check_same(directory, {key: now[key] for key, _ in leaves(asked) if key in before and key in now}, before)
    return run.model_copy(update={"tracking": run.tracking.model_copy(update={"uri": uri or run.tracking.uri})})


def check_same_sweep(sweep: Sweep, directory: Path) -> None:
    """Check that a directory was started with this sweep.

    Raises:
        ConfigError: a setting differs.
    """
    now, before = _settings(sweep.model_dump(mode="json")), _settings(Record.open(directory).file())
    _check_same(directory, {key: now.get(key) for key in {**before, **now}}, before)


def check_extends(sweep: Sweep, directory: Path) -> None:
    """Check that a sweep has all runs of the one in a directory, and more.

    Values of a list, seeds and trials may have been added; the runs there stay what they are.

    Raises:
        ConfigError: anything else differs, or nothing was added.
    """
    if sweep.changes_trials:
        raise ConfigError(f"--extend: trials of scheduler={sweep.scheduler} learn from each other; start a new sweep")
    parent = Record.open(directory)
    now, before = _settings(sweep.model_dump(mode="json")), _settings(parent.file())
    others = {key: now.get(key) for key in {**before, **now} if not _only_adds(key, before.get(key), now.get(key))}
    if differences := _differences(others, before):
        raise ConfigError(
            f"--extend takes the same sweep with added values, seeds or trials, but {directory} {differences}; "
            "set the old values, or leave --extend out"
        )
    ended = [each for each in parent.children() if each.kind == "trial" and each.has_ended]
    if len(ended) >= trial_count(sweep):
        raise ConfigError(f"{directory} has all {len(ended)} runs already; add a value, seeds or trials to extend it")


def _newest_first(folder: Path) -> list[Record]:
    return sound(path.parent for path in sorted(folder.glob("*/record.json"), reverse=True))


def _settings(file: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in leaves(file) if key.partition(".")[0] not in MAY_CHANGE}


def _only_adds(key: str, before: Any, now: Any) -> bool:
    """Return whether a new value keeps all runs that the old one had."""
    if key == "trials":
        return now is None or (before is not None and before <= now)
    if key == "seeds":
        return before <= now
    if key.startswith("vary.") and isinstance(before, list) and isinstance(now, list):
        return all(value in now for value in before)
    return before == now


def _check_same(directory: Path, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    if differences := _differences({key: value for key, value in now.items() if before.get(key) != value}, before):
        raise ConfigError(f"{directory} {differences}; set the old values, or leave --resume out")


def _differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    changes = [f"{key}={before.get(key)}, and now it is {key}={value}" for key, value in sorted(now.items())]
    return f"was started with {'; with '.join(changes)}" if changes else ""

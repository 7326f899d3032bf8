"""Cut the power at every point of a run, and look at what is left.

    python chaos/power_cut.py [--epochs 3] [--out power_cut.csv]

It records the calls of a real run on images (trained, stopped, resumed, finished, its encoder exported; once for
each number of checkpoints that are kept) and of the end of a sweep: every write, fsync, rename, removal. Each prefix of
them is replayed as a disk may have kept it (see `disk.py`). In every state the run's directory is read as `--resume`,
`sync` and `runs ls` read it. Nothing may be raised, nothing read that was never written,
and nothing lost that was acknowledged: a row after `append` has returned, a checkpoint after `save_checkpoint`, an end
after `finish`, an encoder after the command.
"""

import argparse
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from disk import MODELS, Acknowledged, Crash, Event, Recorder, Tree, Wrote, crashes, lay_out
from observed import concluded, written

from eagleray.app import launch
from eagleray.app.conclude import conclude
from eagleray.config import Sweep, load_run, validated
from eagleray.config.search_points import points, sweep_params, varied_keys
from eagleray.contracts.report import Report, Stopped
from eagleray.runs import state
from eagleray.runs.checkpoint import load_checkpoint, newest_checkpoint
from eagleray.runs.export.encoder import WEIGHTS, check_weights
from eagleray.runs.record import METRICS, SYSTEM, Record, find_records

TINY = ["data.limit=48", "batch_size=16", "encoder.width=4", "method.hidden=2", "method.projection=2", "threads=1",
        "evaluate.linear.when=never", "optimizer.name=sgd", "optimizer.lr=5e-3", "device=cpu"]  # fmt: skip
MEMORY = Path("/dev/shm")  # states are laid out there
ALIVE = re.compile(r"\.(new\.)?pulse-|\.stacks-")  # they say that a process lives, and are never forced to the disk
RAISED = "raised"
PARSED: dict[bytes, dict[str, Any]] = {}
Facts = dict[str, Any]  # what is read: "RUN status" -> "finished"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="of each run")
    parser.add_argument("--out", type=Path, help="where to write a row for each scenario, model and outcome, as CSV")
    given = parser.parse_args()
    began, found = time.monotonic(), list[dict[str, Any]]()
    for name, recorded in scenarios(given.epochs).items():
        events = recorded()
        result = replay(events)
        counts = ", ".join(f"{result.states[model]:,} {model}" for model in MODELS)
        print(f"{name}: {len(events)} calls; states: {counts}; broken: {len(result.broken)}", flush=True)
        for model in MODELS:
            wrong = [sentence for sentence in result.broken if f"({model})" in sentence]
            row = {"scenario": name, "model": model}
            found += [{**row, "count": result.states[model] - len(wrong), "broken": ""}]
            found += [{**row, "count": 1, "broken": sentence} for sentence in wrong]
        written(given.out, found)
    print(f"{time.monotonic() - began:.0f} s")
    concluded(found, given.out)


def scenarios(epochs: int) -> dict[str, Callable[[], list[Event]]]:
    """Return what is recorded, by name."""
    return {
        "a run that keeps 1 checkpoint": lambda: run(epochs, keep=1),
        "a run that keeps 2 checkpoints": lambda: run(epochs, keep=2),
        "the end of a sweep": sweep,
    }


# --- what is recorded ------------------------------------------------------------------------------------------


def run(epochs: int, keep: int) -> list[Event]:
    """Record a run that is stopped after its first epoch, resumed and finished."""
    with tempfile.TemporaryDirectory() as folder, acknowledging(Path(folder, "runs")) as recorder:
        store = f"sqlite:///{folder}/mlflow.db"
        settings = [*TINY, f"epochs={epochs}", f"checkpoints.keep={keep}", "checkpoints.every_steps=2"]
        one = load_run(None, [*settings, f"tracking.uri={store}", f"tracking.runs={folder}/runs"])
        place = recorder.root / "eagleray/one"
        try:
            launch.launch_run(one, place, place.parent, stopped_after(1))
        except Stopped:
            launch.launch_run(one, place, place.parent, stopped_after(epochs))
        recorder.acknowledge("eagleray/one encoder", True)
        return recorder.events


def stopped_after(epochs: int) -> Callable[..., Iterator[Report]]:
    """Return a display that stops a run as a person does."""

    def display(reports: Iterator[Report], *_: str) -> Iterator[Report]:
        for report in reports:
            yield report
            if report.epoch_ended and report.progress.epoch == epochs and not report.done:
                raise KeyboardInterrupt

    return display


def sweep() -> list[Event]:
    """Record a sweep whose trials end, and its report."""
    question = validated(Sweep, {"name": "s", "search": "grid", "vary": {"augment.flip": [0, 0.5]}, "floor": []})
    with tempfile.TemporaryDirectory() as folder, acknowledging(Path(folder, "runs")) as recorder:
        parent = Record.create(
            recorder.root / "s/one", name="s", experiment="s", run=question.model_dump(mode="json"),
            params=sweep_params(question), tags={"kind": "sweep", "varied": varied_keys(question.vary)},
        )  # fmt: skip
        for point in points(question):
            trial = Record.create(
                parent.directory / "trials" / point.name, name=point.name, experiment="s", parent=parent,
                run=point.alone(question).file(), params=point.params(question), tags=point.tags,
            )  # fmt: skip
            trial.append(3, {"knn": 0.5 + point.number / 10}, 1)
            trial.finish("finished", summary={"knn": 0.5 + point.number / 10})
        conclude(question, parent)
        return recorder.events


@contextmanager
def acknowledging(root: Path) -> Iterator[Recorder]:
    """Record what is written below a folder, and what its writers are told is kept."""
    root.mkdir()
    create, append, finish, save = Record.create, Record.append, Record.finish, state.save_checkpoint
    keep_data = Record.keep_data

    lines = Counter[tuple[Path, str]]()
    with Recorder(root, ALIVE) as recorder, ExitStack() as patches:

        def created(directory: Path | str, **facts: Any) -> Record:
            place = relative(directory)
            recorder.acknowledge(f"{place} status", None)
            record = create(directory, **facts)
            recorder.acknowledge(f"{place} key", record.key)
            recorder.acknowledge(f"{place} file", record.file())
            return record

        def appended(
            record: Record, step: int, metrics: Any, epoch: float | None = None, *, file: str = METRICS
        ) -> None:
            append(record, step, metrics, epoch, file=file)
            lines[record.directory, file] += 1
            name = f"{relative(record.directory)} {file}:{lines[record.directory, file]}"
            recorder.acknowledge(name, {"step": step, **metrics})

        def finished(record: Record, ending: str, *more: Any, **facts: Any) -> None:
            recorder.acknowledge(f"{relative(record.directory)} status", None)
            finish(record, ending, *more, **facts)
            recorder.acknowledge(f"{relative(record.directory)} status", ending)

        def data_kept(record: Record, facts: Any) -> None:
            keep_data(record, facts)
            recorder.acknowledge(f"{relative(record.directory)} data", dict(facts))

        def saved(directory: Path, values: dict[str, Any], keep: int) -> Path:
            path = save(directory, values, keep)
            recorder.acknowledge(f"{relative(directory)} checkpoint", values["step"])
            return path

        def relative(directory: Path | str) -> str:
            return str(Path(directory).absolute().relative_to(root))

        for owner, name, instead in (
            (Record, "create", created),
            (Record, "append", appended),
            (Record, "finish", finished),
            (Record, "keep_data", data_kept),
            (state, "save_checkpoint", saved),
        ):
            patches.enter_context(patch.object(owner, name, instead))
        yield recorder


# --- what is found ---------------------------------------------------------------------------------------------


@dataclass
class Replayed:
    """How many states there were, and what was wrong in some."""

    states: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def replay(events: list[Event], every: int = 1) -> Replayed:
    """Read what is there in every state, or in one of `every`."""
    result, read = Replayed(), dict[frozenset[Any], Facts]()
    said, whole = everything(events), {event.content for event in events if isinstance(event, Wrote)} | {b""}
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        for crash in islice(crashes(events), 0, None, every):
            result.states[crash.model] += 1
            if (key := frozenset(crash.tree.items())) not in read:
                read[key] = facts(crash.tree, Path(folder, "state"))
            for wrong in mistakes(crash, read[key], said, whole):
                result.broken.append(f"after call {crash.after} ({crash.model}): {wrong}")
    return result


def everything(events: list[Event]) -> dict[str, list[Any]]:
    """Return all that was acknowledged at some time, by name."""
    said: dict[str, list[Any]] = {}
    for event in events:
        if isinstance(event, Acknowledged) and event.fact is not None:
            said.setdefault(event.name, []).append(event.fact)
    return said


def facts(tree: Tree, place: Path) -> Facts:
    """Lay out a tree, and read all runs in it as a resumed program does."""
    place.mkdir()
    lay_out(tree, place)
    found: Facts = {}
    try:
        for file in sorted(path for path in tree if Path(path).name == "record.json"):
            directory = place / Path(file).parent
            found |= {f"{directory.relative_to(place)} {name}": fact for name, fact in of_run(directory)}
        find_records(place)
    except Exception as error:
        found[RAISED] = f"{type(error).__name__}: {error}"
    shutil.rmtree(place)
    return found


def of_run(directory: Path) -> Iterator[tuple[str, Any]]:
    """Read a run, then continue it with one more row."""
    record = Record.open(directory)
    yield "key", record.key
    yield "file", parsed(record, (directory / "run.yaml").read_bytes())
    yield "status", record.state
    yield "data", record.data()
    if (saved := newest_checkpoint(directory)) is not None:
        yield "checkpoint", load_checkpoint(saved)["step"]
    if (directory / "artifacts" / WEIGHTS).exists():
        check_weights(directory / "artifacts" / WEIGHTS)
        yield "encoder", True
    for file in (METRICS, SYSTEM):
        rows = record.read(file=file)[0]
        record.append(10**9, {"next": 1.0}, file=file)
        assert record.read(file=file)[0][:-1] == rows, f"{file} loses rows when the run goes on"
        yield from ((f"{file}:{line}", {"step": row["step"], **row["metrics"]}) for line, row in enumerate(rows, 1))


def mistakes(crash: Crash, found: Facts, said: dict[str, list[Any]], whole: set[bytes]) -> Iterator[str]:
    """Yield what is wrong in a state."""
    if RAISED in found:
        yield f"raised {found[RAISED]}"
        return
    for name, fact in crash.acknowledged.items():
        is_kept = found.get(name, -1) >= fact if name.endswith(" checkpoint") else found.get(name) == fact
        if not is_kept:
            yield f"{name} was {fact}, and is {found.get(name)}"
    for name, fact in found.items():
        if fact not in (*said.get(name, ()), None, "running"):
            yield f"{name} is {fact}, which was never written"
        if name.endswith(" checkpoint"):
            rows = {row: facts[0] for row, facts in said.items() if row.startswith(f"{name.split()[0]} {METRICS}:")}
            passed = [row for row, facts in rows.items() if facts["step"] < fact and row not in found]
            yield from (f"the checkpoint of step {fact} has passed {row}, which is not there" for row in passed)
    for path, content in crash.tree.items():
        is_seen = not any(part.startswith(".") or part.endswith(".tmp") for part in Path(path).parts)
        if content is not None and is_seen and not path.endswith(".jsonl") and content not in whole:
            yield f"{path} is torn"


def parsed(record: Record, content: bytes) -> dict[str, Any]:
    """Return the run file, read once for each content: YAML is slow."""
    if content not in PARSED:
        PARSED[content] = record.file()
    return PARSED[content]


if __name__ == "__main__":
    main()

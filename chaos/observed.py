"""What the scripts of this folder share: processes below this one, digests of what was trained, percentiles."""

import csv
import hashlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from eagleray.runs.checkpoint import load_checkpoint, newest_checkpoint
from eagleray.runs.record import Record

TIMED = ("images_per_second",)  # metrics that differ between equal runs


def below(*words: str) -> list[psutil.Process]:
    """Return the descendants of this process whose command line has one of the words, the oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and any(word in line for word in words):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.create_time())


def digest(directory: Path) -> str:
    """Return a digest of the weights and the optimizer's state in the newest checkpoint of a run."""
    saved = newest_checkpoint(directory)
    assert saved is not None, f"{directory} has no checkpoint"
    state, hashed = load_checkpoint(saved), hashlib.sha256()
    for name, value in leaves({"method": state["method"], "optimizer": state["optimizer"]}):
        hashed.update(name.encode())
        hashed.update(value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else str(value).encode())
    return hashed.hexdigest()


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors below a value, each with its place."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{place}")


def rows(directory: Path) -> list[dict[str, Any]]:
    """Return what a run has recorded, without what differs between equal runs."""
    timed = {*TIMED, "time"}
    return [
        {name: value for name, value in row.items() if name not in timed} for row in Record.open(directory).metrics()
    ]


def repeated(directory: Path) -> int:
    """Return how many rows of a run tell of a step that another row tells of."""
    steps = [row["step"] for row in Record.open(directory).metrics()]
    return len(steps) - len(set(steps))


def percentiles(values: Sequence[float]) -> str:
    """Return the median, the 95th percentile and the largest of some seconds, as text."""
    ordered = sorted(values)
    most = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return f"p50 {statistics.median(ordered):.1f} s, p95 {most:.1f} s, at most {ordered[-1]:.1f} s"


def written(path: Path | None, found: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each injury as CSV."""
    if path and found:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)

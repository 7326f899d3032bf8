"""What the scripts of this folder share: processes below this one, digests of what was trained, a verdict."""

import csv
import hashlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from scipy.stats import binomtest

from eagleray.runs.checkpoint import load_checkpoint, newest_checkpoint
from eagleray.runs.record import Record

TIMED = ("images_per_second",)  # metrics that differ between equal runs
SHOWN = 5  # broken promises that are printed
TINY = ["data.limit=48", "batch_size=16", "encoder.width=4", "method.hidden=2", "method.projection=2", "threads=1",
        "evaluate.linear.when=never", "device=cpu", "precision=fp32"]  # fmt: skip

Row = Mapping[str, Any]  # of one injection; `broken` says what was promised and did not hold, and is empty if all did


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
    """Return how many numbers of a run, as they were written, are of a step and metric that another row tells of."""
    told = [(row["step"], name) for row in Record.open(directory).read()[0] for name in row["metrics"]]
    return len(told) - len(set(told))  # the winner of a sweep has its test numbers in a row of their own


def differences(one: Path, other: Path) -> str:
    """Return in what two runs differ that should be equal; nothing if they are."""
    equal = {
        "rows": rows(one) == rows(other),
        "weights": digest(one) == digest(other),
        "state": Record.open(one).state == Record.open(other).state,
        "steps told twice": repeated(one) == repeated(other) == 0,
    }
    return ", ".join(name for name, is_equal in equal.items() if not is_equal)


# --- the verdict -----------------------------------------------------------------------------------------------


def concluded(found: Sequence[Row], out: Path | None, *times: str) -> NoReturn:
    """Write and print what came of all injections, and exit: 1 if a promise was broken or nothing was tried.

    Args:
        found: a row for each injection, or for `count` alike ones.
        out: a CSV file; None: nowhere.
        times: the columns that are seconds.
    """
    written(out, found)
    for row in [row for row in found if row["broken"]][:SHOWN]:
        print(f"  {dict(row)}")
    print(summary(found))
    for name in times:
        if values := seconds(found, name):
            print(f"{name:10} {percentiles(values)}")
    raise SystemExit(not found or any(row["broken"] for row in found))


def summary(found: Sequence[Row]) -> str:
    """Return how many injections there were, and how many broke a promise."""
    tried, broken = counted(found)
    return f"{tried:,} injected; broken: {broken} (95 %: at most {100 * most(broken, tried):.2g} %)"


def counted(found: Sequence[Row]) -> tuple[int, int]:
    """Return how many injections there were, and how many broke a promise."""
    counts = [(int(row.get("count", 1)), bool(row["broken"])) for row in found]
    return sum(count for count, _ in counts), sum(count for count, is_broken in counts if is_broken)


def most(broken: int, tried: int) -> float:
    """Return the upper end of Wilson's 95 % interval of a share."""
    return binomtest(broken, tried).proportion_ci(0.95, "wilson").high if tried else 1.0


def seconds(found: Sequence[Row], name: str) -> list[float]:
    """Return the seconds of a column, where there are any."""
    return [float(row[name]) for row in found if row.get(name) not in (None, "")]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return statistics.median(ordered) if share == 0.5 else ordered[round(share * (len(ordered) - 1))]


def percentiles(values: Sequence[float]) -> str:
    """Return the median, the 95th percentile and the largest of some seconds, as text."""
    return f"p50 {percentile(values, 0.5):.1f} s, p95 {percentile(values, 0.95):.1f} s, at most {max(values):.1f} s"


def written(path: Path | None, found: Sequence[Row]) -> None:
    """Write a line for each injection as CSV."""
    if path and found:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, list(dict.fromkeys(name for row in found for name in row)), lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(found)

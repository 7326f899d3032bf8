"""Let the disk of a run fill up, become read-only, fail or slow down; nothing that was kept may be lost.

    python chaos/storage.py [--each 10] [--out storage.csv]

At a random report of a run its disk (a tmpfs of 1 MiB; that needs root) is filled by another program (`full`), or the
calls that force or rename files below its directory fail, once or from then on, with EIO or EROFS, or some of them take
`--latency` seconds (`slow`). A slow run must end as if nothing had happened. Every other one must end within ten
seconds in one sentence that names file and reason; its newest checkpoint must be whole, and not older than the last one
that was told. When the disk is well again, the same command must end with the weights and rows of the undisturbed run.
"""

import argparse
import errno
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from observed import TINY, concluded, differences

from eagleray.app.launch import launch_run
from eagleray.config import load_run
from eagleray.contracts.report import Failed, Report
from eagleray.runs.checkpoint import load_checkpoint, newest_checkpoint

PATIENCE = 10  # seconds until a person is told
SLOW = 4  # calls
SETTINGS = [*TINY, "epochs=4", "checkpoints.every_steps=1"]
REPORTS = 12
Fault = Callable[[Path], AbstractContextManager[None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=10, help="injuries of each kind")
    parser.add_argument("--kinds", nargs="*", help="only these")
    parser.add_argument("--latency", type=float, default=5.0, help="seconds of a slow call")
    parser.add_argument("--out", type=Path, help="where to write a row for each injury, as CSV")
    given = parser.parse_args()
    faults: dict[str, Fault] = {
        "full": full,
        "EIO once": partial(failing, errno.EIO, calls=1),
        "EIO": partial(failing, errno.EIO),
        "read-only": partial(failing, errno.EROFS),
        "slow": partial(slow, given.latency),
    }
    draw, found = random.Random(0), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name, disk(Path(name, "disk")) as folder:
        store = f"tracking.uri=sqlite:///{name}/mlflow.db"
        whole = Path(name, "undisturbed")
        trained([*SETTINGS, store], whole)
        for kind, fault in faults.items():
            if given.kinds and kind not in given.kinds:
                continue
            if kind == "full" and not folder.is_mount():
                print("full: not tried, as only root of a whole machine may mount a disk")
                continue
            for _ in range(given.each if kind != "slow" else max(1, given.each // 3)):
                row = injured([*SETTINGS, store], folder / "run", whole, fault, draw.randrange(REPORTS))
                silent = "no word, " * (bool(row["told"]) == (kind == "slow"))
                found.append({"kind": kind, **row, "broken": silent + row["broken"]})
            print(f"{kind}: {found[-1]}", flush=True)
    concluded(found, given.out, "seconds")


def injured(settings: list[str], place: Path, whole: Path, fault: Fault, at: int) -> dict[str, Any]:
    """Injure the disk of a run, heal it, continue the run."""
    shutil.rmtree(place, ignore_errors=True)
    with ExitStack() as faults:
        injury = Injury(place, at, fault, faults)
        wrong, told = list[str](), ""
        try:
            trained(settings, place, injury)
        except Failed as error:
            told = str(error)
        seconds = time.monotonic() - injury.struck
    if told:
        saved = newest_checkpoint(place)
        wrong += ["the last checkpoint is lost"] * ((load_checkpoint(saved)["step"] if saved else 0) < injury.kept)
        wrong += ["no sentence"] * ("\n" in told or "cannot be written: " not in told)
        wrong += ["told late"] * (seconds > PATIENCE)
        trained(settings, place)
    wrong += [differences(whole, place)]
    wrong += ["files are left"] * bool([*place.rglob("*.tmp"), *place.rglob(".*.json.*")])
    told = told.replace(f"{place}/", "")
    return {"step": at + 1, "seconds": round(seconds, 2), "told": told, "broken": ", ".join(filter(None, wrong))}


class Injury:
    """Shows a run, and injures its disk after one of its reports."""

    def __init__(self, place: Path, at: int, fault: Fault, faults: ExitStack):
        self.place, self.at, self.fault, self.faults = place, at, fault, faults
        self.struck, self.kept = time.monotonic(), 0  # when; the step of the last checkpoint before

    def __call__(self, reports: Iterator[Report], *_: str) -> Iterator[Report]:
        for number, report in enumerate(reports):
            if report.checkpoint:
                self.kept = report.progress.step
            if number == self.at:
                self.faults.enter_context(self.fault(self.place))
                self.struck = time.monotonic()
            yield report


def shown(reports: Iterator[Report], *_: str) -> Iterator[Report]:
    return reports


def trained(settings: list[str], place: Path, display: Any = shown) -> None:
    run = load_run(None, [*settings, f"tracking.runs={place.parent}"])
    launch_run(run, place, place.parent, display)


# --- faults ----------------------------------------------------------------------------------------------------


@contextmanager
def disk(place: Path) -> Iterator[Path]:
    """Mount a small disk, or make a folder where that is not allowed."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    try:
        yield place
    finally:
        if not done.returncode:
            subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def full(place: Path) -> Iterator[None]:
    """Take all room that is left on a disk."""
    others = place.parent / "others"
    with suppress(OSError), others.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    try:
        yield
    finally:
        others.unlink()


@contextmanager
def failing(number: int, place: Path, calls: int | None = None) -> Iterator[None]:
    """Let calls that force or rename files below a place fail with an error: some, or all."""
    left = [calls]

    def fail() -> None:
        if left[0] is None or left[0] > 0:
            left[0] = left[0] and left[0] - 1
            raise OSError(number, os.strerror(number))

    with before_writes(place, fail):
        yield


@contextmanager
def slow(latency: float, place: Path) -> Iterator[None]:
    """Let some calls take long."""
    left = [SLOW]

    def wait() -> None:
        if left[0] > 0:
            left[0] -= 1
            time.sleep(latency)

    with before_writes(place, wait):
        yield


@contextmanager
def before_writes(place: Path, act: Callable[[], None]) -> Iterator[None]:
    """Act before each call of this process that forces or renames a file below a place."""
    force, rename = os.fsync, os.replace

    def forced(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(place):
            act()
        force(descriptor)

    def renamed(source: Any, target: Any) -> None:
        if Path(target).is_relative_to(place):
            act()
        rename(source, target)

    with patch.object(os, "fsync", forced), patch.object(os, "replace", renamed):
        yield


if __name__ == "__main__":
    main()

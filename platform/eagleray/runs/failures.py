"""Classes of failures, and what each asks for.

    infrastructure  a machine, a worker, the network or the storage: tried again
    out of memory   never tried again unchanged; a smaller batch is proposed
    diverged        the loss is no number; the step and its images are named
    settings        a ConfigError; its sentence says what to change
    bug             an exception from code; a sweep whose first trials share one ends

A failure is kept in the run's directory: its class and reason in status.json, its traceback in artifacts/error.txt.
Imports no torch.
"""

import errno
import hashlib
import sys
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from eagleray.config import Run, changed, read_run
from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError, Damaged
from eagleray.contracts.files import write
from eagleray.contracts.report import Diverged, Failed, Kind
from eagleray.runs.record import INTERRUPTED, Record
from eagleray.storage.copy import of_record
from eagleray.storage.mirror import mirrored

ALIKE = 3  # trials that fail in the same way, the first ones of a sweep, before it ends
LONGEST = 300  # characters of a reason
AGAIN: tuple[Kind, ...] = ("infrastructure", "settings", "bug")  # what --resume tries again; the rest would recur
# Words of torch's own RuntimeErrors, which have no class.
MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL", "uncorrectable ECC")
LOST_ERRORS = frozenset(
    {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EREMOTEIO, errno.EPIPE, errno.ETIMEDOUT, errno.ENODEV}
    | {errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN}
    | {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN}
)


@dataclass(frozen=True)
class Failure:
    """Why a run ended without a result."""

    kind: Kind
    reason: str  # in a sentence
    place: str = ""  # of a bug: file, line and function
    digest: str = ""  # of a bug's traceback: equal for two runs that fail at the same place by the same way

    @property
    def is_tried_again(self) -> bool:
        """Whether the same run may succeed on another machine or at another time."""
        return self.kind == "infrastructure"

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Classify an exception."""
        kind, reason = kind_of(error), _sentence(error)
        if kind != "bug":
            return cls(kind, reason)
        return cls(kind, reason, _place(error.__traceback__), _digest(error))


def kind_of(error: BaseException) -> Kind:
    """Return the class of an exception, or of the one that caused it."""
    if isinstance(error, Failed):
        return error.kind
    if isinstance(error, ConfigError):
        return "settings"
    text = str(error)
    torch = sys.modules.get("torch")  # its errors come only from where it was imported
    own = (torch.OutOfMemoryError, torch.distributed.DistError) if torch else ()
    is_low = isinstance(error, RuntimeError) and any(words in text for words in MEMORY)
    if isinstance(error, (MemoryError, *own[:1])) or is_low or _number(error) == errno.ENOMEM:
        return "out of memory"
    is_lost = isinstance(error, RuntimeError) and any(words in text for words in LOST)
    known = isinstance(error, (ConnectionError, TimeoutError, *own[1:]))
    if known or is_lost or _number(error) in LOST_ERRORS:
        return "infrastructure"
    return kind_of(error.__cause__) if error.__cause__ is not None else "bug"


def keep(record: Record, failure: Failure, log: str) -> None:
    """Write a failure to the run's directory, with the log of what happened."""
    failure = replace(failure, reason=without_password(failure.reason))
    record.finish("failed", failure.reason, summary=_last(record), failure=asdict(failure))
    write(record.artifacts / "error.txt", without_password(log))


def keep_error(record: Record, error: BaseException) -> Failure:
    """Classify an exception and keep it, unless its class was kept already."""
    if (known := failure_in(record)) is not None:
        return known
    failure = Failure.of(error)
    keep(record, failure, "".join(traceback.format_exception(error)))
    return failure


def keep_end(record: Record, error: BaseException) -> str:
    """Keep what has ended a run or sweep early, and close the unfinished runs of a sweep.

    Return what a person is told.
    """
    try:
        close_unfinished(record, INTERRUPTED)
        if isinstance(error, Exception):
            keep_error(record, error)
        elif record.state == "running":
            record.finish("stopped", "by a person", summary=_last(record))
        return told(record)
    except (Failed, ConfigError, OSError) as lost:  # the directory is full, gone or damaged
        failure = Failure.of(error)
        return f"{record.name} failed ({failure.kind}): {failure.reason}. That could not be kept: {lost}"


def failure_in(record: Record) -> Failure | None:
    """Read a kept failure; None if the run has not failed."""
    status = record.status
    return Failure(**status["failure"]) if status["state"] == "failed" and "failure" in status else None


def told(record: Record) -> str:
    """Tell a person what failed, where its log is, and one command to type next.

    It has at most five lines.
    """
    failure = failure_in(record)
    if failure is None:
        return f"{record.name} {record.state}: {record.status['message']}"
    lines = [f"{record.name} failed ({failure.kind}): {failure.reason}"]
    lines += [f"  at {failure.place}"] if failure.place else []
    lines += [f"log: {record.artifacts / 'error.txt'}", f"next: {_next(record, failure)}"]
    return "\n".join(lines)


def told_of_trials(sweep: Record) -> str:
    """Tell a person about the failed trials of a sweep; nothing if none failed."""
    failed = [child for child in sweep.children() if child.kind == "trial" and child.state == "failed"]
    if not failed:
        return ""
    return f"{len(failed)} of the trials failed; the first: {told(failed[0])}"


def may_resume(record: Record) -> bool:
    """Return whether --resume has something to continue or to try again."""
    failures = [failure_in(each) for each in (record, *record.children())]
    again = any(failure is not None and failure.kind in AGAIN for failure in failures)
    return record.state in ("running", "stopped") or again


def close_unfinished(sweep: Record, why: str) -> None:
    """Write that the runs of a sweep have stopped with it, if they have not ended."""
    for child in sweep.children():
        if child.state == "running":
            with mirrored(child.directory, of_record):
                child.finish("stopped", why, summary=_last(child))


def reopen_unfinished(sweep: Record) -> None:
    """Forget the ends of runs that a resumed sweep continues or tries again.

    Failures that would recur with the same settings stay.
    """
    for child in sweep.children():
        failure = failure_in(child)
        is_tried = child.state == "failed" and (failure is None or failure.kind in AGAIN)
        if is_tried or not child.has_ended:
            with mirrored(child.directory, of_record):
                child.reopen()


def smaller_batch(run: Run) -> int | None:
    """Return about half the batch size, one that the run accepts; None if there is none."""
    for size in (run.batch_size // 2, run.batch_size // 4):
        size -= size % run.workers
        try:
            return changed(run, {"batch_size": size}).batch_size
        except ConfigError:
            continue
    return None


def kills_for_memory() -> int | None:
    """Count processes that the kernel has killed here for their memory.

    It counts those of this process's control group, or where that is not known, of the machine; None: not known.
    """
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        places = (Path(f"/sys/fs/cgroup{group}/memory.events"), Path("/proc/vmstat"))
        text = next(place.read_text() for place in places if place.exists())
    except (OSError, StopIteration):
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), None)


def _last(record: Record) -> dict[str, float]:
    """Return the last numbers of a run; none if they are damaged, which is what has failed then."""
    try:
        return record.last
    except Damaged:
        return {}


def _next(record: Record, failure: Failure) -> str:
    parent = record.parent
    change = _change(record, failure)
    if change and parent is not None and change.partition("=")[0] in parent.file()["vary"]:
        return f"eagleray train {record.directory / 'run.yaml'} {change}"
    command = "sweep" if parent is not None or record.kind == "sweep" else "train"
    first = "put that right, then: " if failure.kind in ("bug", "settings") else ""
    return f"{first}eagleray {command} {(parent or record).directory / 'run.yaml'} {change or '--resume'}"


def _change(record: Record, failure: Failure) -> str:
    """Return the setting that may avoid the failure; nothing if none is known."""
    if failure.kind not in ("out of memory", "diverged"):
        return ""
    run = read_run(record.file())
    if failure.kind == "diverged":
        return f"optimizer.lr={run.optimizer.lr / 10:.2g}"
    size = smaller_batch(run)
    return f"batch_size={size}" if size else f"encoder={run.encoder.name} image_size=16"


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    whole = text if isinstance(error, ConfigError | Failed) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return whole if len(whole) <= LONGEST or isinstance(error, Diverged) else f"{whole[: LONGEST - 1]}…"


def _number(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _place(trace: TracebackType | None) -> str:
    """Return the last frame outside of libraries."""
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if "site-packages" not in frame.filename and sys.prefix not in frame.filename]
    frame = next(reversed(own or frames), None)
    return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" if frame else ""


def _digest(error: BaseException) -> str:
    frames = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    return hashlib.sha256(repr((type(error).__name__, frames)).encode()).hexdigest()[:16]

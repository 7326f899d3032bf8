"""Failures that come through Ray."""

from typing import Any

import ray
import ray.exceptions
from ray.train import TrainingFailedError

from eagleray.contracts.report import Diverged, Failed
from eagleray.runs.failures import Failure

KILLED = "the kernel has killed it for its memory"


def failure_of(error: BaseException, *, killed: bool = False) -> Failure:
    """Classify an error of an actor, a task or a group of workers.

    Args:
        error: as Ray raises it.
        killed: whether the kernel has killed a process for its memory.
    """
    if isinstance(error, TrainingFailedError):
        inner = [failure_of(each, killed=killed) for each in getattr(error, "worker_failures", {}).values()]
        # If one worker fails, the others lose their connection to it.
        return next((each for each in inner if not each.is_tried_again), Failure("infrastructure", _last_line(error)))
    if isinstance(lost := getattr(error, "health_check_failure", None), Exception):  # of an internal class of Ray Train
        return failure_of(lost, killed=killed)
    if isinstance(error, ray.exceptions.RayTaskError):
        return Failure.of(error.cause) if isinstance(error.cause, BaseException) else Failure("bug", _last_line(error))
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error):
        return Failure("out of memory", "Ray has killed it, because its machine had no memory left")
    if isinstance(error, ray.exceptions.RayError):
        return Failure("out of memory", KILLED) if killed else Failure("infrastructure", _last_line(error))
    return Failure.of(error)


def as_failed(failure: Failure) -> Failed:
    """Return the error that a failure in another process is here."""
    kind = Diverged if failure.kind == "diverged" else Failed
    return kind(failure.reason, failure.kind)


def answer_of(task: "ray.ObjectRef[Any]") -> Any:
    """Wait for the result of a task.

    Raises:
        Failed: it has failed, or its machine is gone.
    """
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        raise as_failed(failure_of(error)) from error


def _last_line(error: BaseException) -> str:
    """Return what happened; before it are the stack traces of all processes in between."""
    return str(error).strip().rpartition("\n")[2]

"""Checkpoints: files that hold all state of a run."""

import os
from pathlib import Path
from typing import Any

import torch

from eagleray.contracts.errors import ConfigError


def save_checkpoint(directory: Path, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and delete old ones.

    Of the files `checkpoints/step-<n>.pt`, only the newest `keep` stay. The write is atomic: a reader finds a whole
    file or none.

    Args:
        directory: of the run.
        state: plain values and tensors; `step` names the file.
        keep: how many checkpoints stay.
    """
    path = directory / "checkpoints" / f"step-{state['step']:09d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.tmp"):  # by a process that was killed, or whose disk was full
        left.unlink(missing_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    for old in checkpoints(directory)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the state in a checkpoint.

    No code from the file is run.
    """
    return torch.load(path, map_location=device, weights_only=True)


def checkpoints(directory: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return sorted((directory / "checkpoints").glob("step-*.pt"))


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    return next(reversed(checkpoints(directory)), None)


def run_directory(checkpoint: Path) -> Path:
    """Return the directory of a checkpoint's run."""
    return checkpoint.parents[1]


def last_state(directory: Path) -> dict[str, Any]:
    """Read a run's newest checkpoint onto the CPU.

    Raises:
        ConfigError: the run has no checkpoint.
    """
    saved = newest_checkpoint(directory)
    if saved is None:
        raise ConfigError(
            f"{directory} has no checkpoint, so there are no weights; train it first, or name the directory of "
            "another run (those of a sweep are in its trials)"
        )
    return load_checkpoint(saved)

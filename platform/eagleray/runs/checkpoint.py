"""Checkpoints: files that hold all state of a run.

Their names end with a digest of their content, so that a damaged one is found before it is used.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from eagleray.contracts.errors import ConfigError, Damaged, Skipped
from eagleray.contracts.files import digest_of, force, place, unfinished, writable


def save_checkpoint(directory: Path, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and delete old ones.

    Of the files `checkpoints/step-<step>-<digest>.pt`, only the newest `keep` stay. A reader finds a whole file or
    none, also after a power cut: the old ones are deleted when the name of the new one is on the disk.

    Args:
        directory: of the run; it exists.
        state: plain values and tensors; `step` names the file.
        keep: how many checkpoints stay.

    Raises:
        Failed: there is no room on the disk, or it cannot be written.
    """
    folder, name = directory / "checkpoints", f"step-{state['step']:09d}"
    with writable(folder / f"{name}.pt"), unfinished(folder / f"{name}.{os.getpid()}.tmp") as beside:
        if not folder.exists():
            folder.mkdir()
            force(directory)
        for left in folder.glob("*.tmp"):  # by a process that was killed
            left.unlink(missing_ok=True)
        torch.save(state, beside)
        path = folder / f"{name}-{digest_of(beside)}.pt"
        place(beside, path)
    for repeated in folder.glob(f"{name}-*.pt"):  # by an earlier start
        if repeated != path:
            repeated.unlink(missing_ok=True)
    for old in checkpoints(directory)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def keep_weights(directory: Path) -> Path | None:
    """Reduce what a run has saved to the weights: one checkpoint, without the optimizer's state.

    It can be evaluated, exported and built upon, but not trained on.

    Returns:
        The checkpoint; None: the run has none.

    Raises:
        Damaged: all are damaged.
    """
    saved = newest_checkpoint(directory)
    if saved is None:
        return None
    state = load_checkpoint(saved)
    if state.pop("optimizer", None) is not None:
        saved = save_checkpoint(directory, state, keep=1 + len(checkpoints(directory)))
    for other in checkpoints(directory):
        if other != saved:
            other.unlink(missing_ok=True)
    return saved


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the state in a checkpoint.

    No code from the file is run.

    Raises:
        Damaged: the file is not as it was written.
    """
    check(path)
    return torch.load(path, map_location=device, weights_only=True)


def check(path: Path) -> None:
    """Check that a checkpoint is as it was written.

    Raises:
        Damaged: it is not.
    """
    if path.stem.rpartition("-")[2] != digest_of(path):
        raise Damaged(f"{path} is damaged: its content does not fit the digest in its name; delete it")


def checkpoints(directory: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return sorted((directory / "checkpoints").glob("step-*.pt"))


def step_of(checkpoint: Path) -> int:
    """Return after how many steps a checkpoint was saved, as its name says."""
    return int(checkpoint.name.split("-")[1])


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint of a run that is not damaged.

    Damaged ones are named in a warning. None: the run has no checkpoint.

    Raises:
        Damaged: all are damaged.
    """
    saved = checkpoints(directory)
    for path in reversed(saved):
        try:
            check(path)
        except Damaged as error:
            warnings.warn(f"{error}. An older checkpoint is used", Skipped, stacklevel=2)
        else:
            return path
    if saved:
        raise Damaged(f"all checkpoints of {directory} are damaged: train it again, without --resume")
    return None


def run_directory(checkpoint: Path) -> Path:
    """Return the directory of a checkpoint's run."""
    return checkpoint.parents[1]


def last_state(directory: Path) -> dict[str, Any]:
    """Read a run's newest checkpoint onto the CPU.

    Raises:
        ConfigError: the run has no checkpoint, or all are damaged.
    """
    saved = newest_checkpoint(directory)
    if saved is None:
        raise ConfigError(
            f"{directory} has no checkpoint, so there are no weights; train it first, or name the directory of "
            "another run (those of a sweep are in its trials)"
        )
    return load_checkpoint(saved)

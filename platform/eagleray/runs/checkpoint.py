"""All the state of a run into one file, and out again."""

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(directory: Path, state: dict[str, Any], keep: int) -> Path:
    """Writes `step-<n>.pt` atomically: a reader finds a whole file or none. The oldest beyond `keep` are deleted."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{state['step']:09d}.pt"
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
    """The state a checkpoint holds; runs no code from the file."""
    return torch.load(path, map_location=device, weights_only=True)


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(directory.glob("step-*.pt"))

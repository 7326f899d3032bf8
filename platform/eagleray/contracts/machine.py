"""What this machine offers. Imports nothing slow."""

import os
import sys
from pathlib import Path


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_gpu() -> bool:
    """Return whether the files of a GPU's driver are here: NVIDIA's, a Jetson's, AMD's or that of WSL.

    Torch knows better, but takes seconds to import.
    """
    drivers = ("nvidiactl", "nvmap", "kfd", "dxg")
    return not sys.platform.startswith("linux") or any(Path("/dev", name).exists() for name in drivers)


def user_cache() -> Path:
    """Return the folder for what can be made again, in that of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eagleray"

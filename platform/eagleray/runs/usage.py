"""Measure what a run uses of its machine.

The names begin with `system/`, as MLflow's own do, so that its pages show them apart from what was learnt.
"""

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Usage:
    """Measures this process, from one call to the next.

    A call takes less than a millisecond and starts nothing.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def measured(self) -> dict[str, float]:
        """Return the cores used on average since the last call, and the memory used now, in MB.

        Memory of a GPU is what torch has reserved of it; how busy it is, is that of its last second or less.
        """
        wall, cpu = time.monotonic(), time.process_time()
        numbers = {
            "system/cpu_cores_used": (cpu - self._cpu) / max(wall - self._wall, 1e-3),
            "system/memory_megabytes": _resident() / 1e6,
        }
        self._wall, self._cpu = wall, cpu
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            numbers["system/gpu_memory_megabytes"] = torch.cuda.memory_reserved() / 1e6
            numbers |= _utilization(torch)
        return numbers


def _utilization(torch: Any) -> dict[str, float]:
    """Return how busy the GPU is, in percent; nothing where neither pynvml nor the GPU tells."""
    pynvml = sys.modules.get("pynvml")  # imported by torch if it is installed
    if pynvml is None:
        return {}
    try:
        return {"system/gpu_utilization_percent": float(torch.cuda.utilization())}
    except (ImportError, RuntimeError, pynvml.NVMLError):  # an AMD GPU, no driver, or a part of a GPU (MIG)
        return {}


def _resident() -> float:
    """Return the memory of this process in bytes; where there is no /proc, the most that it has used."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

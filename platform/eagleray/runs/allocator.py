"""What the C library does with memory that tensors on the CPU give back."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**30  # bytes


def keep_freed_memory() -> None:
    """Lets this process keep what its tensors free, for the tensors of the next step.

    glibc gives large blocks back to the system, which then clears every page anew: thousands of page faults in
    a step of a small network (docs/performance.md has what they cost). Where there is no glibc nothing is changed. What
    a process has once used it keeps until it ends.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)

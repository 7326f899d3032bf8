"""Tune the C library's allocator for CPU tensors."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**30  # bytes


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for later steps.

    By default glibc returns large blocks to the system, which clears every page before it hands it out again: thousands
    of page faults in a step of a small network (docs/performance.md has what they cost). The process keeps the memory
    until it ends. Without glibc nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)

"""What a run depends on besides its file: versions, commit, hardware."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from eagleray.contracts.machine import cores

Value = str | int | float | bool | None


# A repository's own settings name programs: this one, those of its submodules, and filters (see `_may_compare`).
STATUS = ("-c", "core.fsmonitor=false", "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")


def environment() -> dict[str, Value]:
    """Return versions, git commit and hardware.

    A result depends on them in addition to its run file. What cannot be determined is None. GPUs are named only if
    torch is loaded already: loading it takes seconds. The commit of the working directory is read once: a process keeps
    running the code it started with.
    """
    packages = ("eagleray", "torch", "torchvision", "timm", "ray", "mlflow")
    here = Path.cwd()
    changed = _git(here, *STATUS) if _may_compare(here) else None
    return {
        "python": platform.python_version(),
        **{package: version_of(package) for package in packages},
        "commit": _git(here, "rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else changed != "",
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": _gpus(),
        "user": os.environ.get("USER") or os.environ.get("LOGNAME"),
    }


@cache
def version_of(package: str) -> str | None:
    """Return a package's version, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _may_compare(directory: Path) -> bool:
    """Return whether git compares files without filters that the repository, which others may have made, names."""
    keys = _git(directory, "config", "--list", "--show-scope", "--name-only")
    scoped = [line.split("\t", 1) for line in (keys or "").splitlines()]
    return keys is not None and not any(
        key.startswith("filter.") and scope not in ("system", "global", "command") for scope, key in scoped
    )


@cache
def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a disk too slow to compare files
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _gpus() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))

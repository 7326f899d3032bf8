"""A look at this machine: what Eagleray finds, and what to do where something is missing."""

import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

from eagleray.contracts.machine import cores, user_cache
from eagleray.runs.environment import environment, version_of

GIB = 2**30
MEMORY = 4  # GiB that a run on photos and a sweep's processes need
SHARED = 1  # GiB in /dev/shm, where Ray keeps what its processes share
DISK = 5  # GiB for checkpoints and the cache of decoded images
SHOWN = ("torch", "torchvision", "timm", "ray", "mlflow", "optuna")
PORTS = {5000: "eagleray ui", 6379: "a Ray cluster", 8265: "Ray's dashboard"}


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    what: str
    found: str
    remedy: str = ""  # empty: all is well


def findings(runs: Path) -> Iterator[Finding]:
    """Look at versions, hardware, ports, folders and disk.

    Args:
        runs: the folder where runs would be recorded.
    """
    yield from _versions()
    yield from _gpu_and_precision()
    yield from (_cores(), _memory(), _shared_memory())
    yield from (_port(number, user) for number, user in PORTS.items())
    yield from _folders(runs)
    yield _commit()


def _versions() -> Iterator[Finding]:
    yield Finding("eagleray", f"{version_of('eagleray')} in {Path(__file__).parents[1]}")
    try:
        ranges = {each.name: each for each in map(Requirement, requires("eagleray") or ())}
    except PackageNotFoundError:
        yield Finding("packages", "eagleray runs from its source", "pip install -e . so that versions can be compared")
        return
    for name in SHOWN:
        tested = ranges[name].specifier
        found = version_of(name)
        if found is None:
            yield Finding(name, "missing", f"pip install '{name}{tested}'")
            continue
        is_tested = tested.contains(found, prereleases=True)
        yield Finding(name, f"{found} (tested: {tested})", "" if is_tested else f"pip install '{name}{tested}'")


def _gpu_and_precision() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it was built for is missing
        yield Finding("GPU", f"torch cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    from eagleray.runs.device import pick_device, precision_reason

    device = pick_device("auto")
    if device.type == "cuda":
        each = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
        yield Finding("GPU", ", ".join(f"{one.name} ({one.total_memory / GIB:.0f} GiB)" for one in each))
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "GPU", "nvidia-smi is here, but torch finds no GPU", "install a torch built for your driver's CUDA"
        )
    else:
        yield Finding("GPU", "none: runs use the CPU")
    yield Finding("precision", precision_reason(device))


def _cores() -> Finding:
    return Finding(
        "cores", str(cores()), "" if cores() > 1 else "one core decodes and trains in turn: expect long runs"
    )


def _memory() -> Finding:
    file = Path("/proc/meminfo")
    if not file.is_file():
        return Finding("memory", "unknown on this system")
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
    whole, free = (int(lines[key].split()[0]) / 2**20 for key in ("MemTotal", "MemAvailable"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        whole = min(whole, int(text) / GIB)
        free = min(free, whole)
    short = f"close other programs, or lower data.memory_limit and concurrent: {MEMORY} GiB should be free"
    return Finding("memory", f"{free:.0f} of {whole:.0f} GiB free", "" if free >= MEMORY else short)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", "no /dev/shm on this system")
    size = shutil.disk_usage(place).total / GIB
    remedy = "" if size >= SHARED else "Ray then uses the disk, which is slow: in Docker, add --shm-size=2g"
    return Finding("shared memory", f"{size:.1f} GiB in {place}", remedy)


def _port(number: int, user: str) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            remedy = f"eagleray ui --port {number + 1}" if number == 5000 else ""  # Ray looks for another port itself
            return Finding(f"port {number}", f"taken ({user} would use it)", remedy)
    return Finding(f"port {number}", f"free, for {user}")


def _folders(runs: Path) -> Iterator[Finding]:
    for what, folder, setting in (("runs", runs, "tracking.runs"), ("cache", user_cache(), "data.cache")):
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            yield Finding(what, f"{there} cannot be written: {error.strerror}", f"set {setting} to a folder that can")
            continue
        free = shutil.disk_usage(there).free / GIB
        remedy = "" if free >= DISK else f"free {DISK} GiB, or set {setting} to a folder on another disk"
        yield Finding(what, f"{folder.absolute()}, {free:.0f} GiB free", remedy)


def _commit() -> Finding:
    facts = environment()
    if facts["commit"] is None:
        return Finding("git commit", "none", "run inside a git repository, so that runs record which code made them")
    changed = ", with uncommitted changes" if facts["uncommitted_changes"] else ""
    return Finding("git commit", f"{str(facts['commit'])[:12]}{changed}")

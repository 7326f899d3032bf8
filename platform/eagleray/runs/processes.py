"""A function, called in several gloo processes.

Do they compute together what one process computes alone? `eagleray check FILE.py` and the tests ask that.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from eagleray.config.plugin_files import import_file


def two_processes(function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """Call `function(*arguments)` in two processes, as `processes` does."""
    return processes(2, function, *arguments, timeout=timeout)


def processes(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """Call a function in a gloo group of processes.

    Each calls `function(*arguments)`.

    Args:
        world: how many processes.
        function: a function at the top of a file; the children import that file again.
        arguments: anything that pickles.
        timeout: seconds until all are killed.

    Returns:
        The results in the order of the ranks: tensors, numbers, strings, and lists or dicts of them.

    Raises:
        RuntimeError: a child failed (with the end of its output), or the time is up.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save((function.__code__.co_filename, function.__name__, arguments), Path(folder, "call"))
        children = [_start(rank, world, folder) for rank in range(world)]
        try:
            _wait(children, folder, time.monotonic() + timeout)
        finally:
            for child in children:
                child.kill()
                child.communicate()  # reaps it and closes its pipe
        return [torch.load(Path(folder, f"result{rank}"), weights_only=True) for rank in range(world)]


def _start(rank: int, world: int, folder: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    with Path(folder, f"output{rank}").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(rank), str(world), folder],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends: see _die_with_parent
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _wait(children: list[subprocess.Popen[bytes]], folder: str, deadline: float) -> None:
    while any(child.poll() is None for child in children):
        # One that failed leaves the others waiting in a collective, so do not wait for all.
        if any(child.returncode for child in children) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    outputs = [Path(folder, f"output{rank}").read_text(errors="replace")[-6000:] for rank in range(len(children))]
    shown = "\n".join(f"--- process {rank}, exit {codes[rank]}:\n{outputs[rank]}" for rank in range(len(children)))
    if any(codes) or None in codes:
        raise RuntimeError(f"{len(codes)} processes: one failed, or the time was up (exit None)\n{shown}")


def _die_with_parent() -> None:
    """End this process when its standard input closes."""
    import threading

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing is ever written to it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _child(rank: int, world: int, folder: str) -> None:
    import torch.distributed as dist

    _die_with_parent()
    file, name, arguments = torch.load(Path(folder, "call"), weights_only=False)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    result = getattr(import_file("_called", Path(file)), name)(*arguments)
    torch.save(result, Path(folder, f"result{rank}"))
    dist.barrier()  # none leaves while another still needs it
    dist.destroy_process_group()


if __name__ == "__main__":
    _child(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    # Skip the interpreter's teardown: with the result kept, a thread of a library once aborted the process in it.
    sys.stdout.flush()
    os._exit(0)

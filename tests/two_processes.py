"""Run a function in two gloo processes: do they compute together what one process computes alone?"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORLD = 2


def two_processes(function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """Call `function(*arguments)` in two processes that share a gloo group; returns what each returned.

    Args:
        function: a function at the top of a test file; the children import that file anew.
        arguments: anything that pickles.
        timeout: seconds until both are killed.

    Returns:
        The two results in the order of the ranks: tensors, numbers, strings, and lists or dicts of them.

    Raises:
        AssertionError: a child failed (with the end of its output), or the time is up.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save((function.__code__.co_filename, function.__name__, arguments), Path(folder, "call"))
        children = [_start(rank, folder) for rank in range(WORLD)]
        try:
            _wait(children, folder, time.monotonic() + timeout)
        finally:
            for child in children:
                child.kill()
                child.communicate()  # reaps it and closes its pipe
        return [torch.load(Path(folder, f"result{rank}"), weights_only=True) for rank in range(WORLD)]


def _start(rank: int, folder: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    with Path(folder, f"output{rank}").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, __file__, str(rank), folder],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends: see _die_with_parent
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _wait(children: list[subprocess.Popen[bytes]], folder: str, deadline: float) -> None:
    while any(child.poll() is None for child in children):
        # One that failed leaves the other waiting in a collective, so do not wait for both.
        if any(child.returncode for child in children) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    outputs = [Path(folder, f"output{rank}").read_text(errors="replace")[-6000:] for rank in range(WORLD)]
    shown = "\n".join(f"--- process {rank}, exit {codes[rank]}:\n{outputs[rank]}" for rank in range(WORLD))
    assert codes == [0] * WORLD, f"two processes: one failed, or the time was up (exit None)\n{shown}"


def _die_with_parent() -> None:
    """End this process as soon as its standard input closes."""
    import threading

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing is ever written to it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _child(rank: int, folder: str) -> None:
    import importlib
    from datetime import timedelta

    import torch.distributed as dist

    _die_with_parent()
    file, name, arguments = torch.load(Path(folder, "call"), weights_only=False)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    sys.path.insert(0, str(Path(file).parent))
    result = getattr(importlib.import_module(Path(file).stem), name)(*arguments)
    torch.save(result, Path(folder, f"result{rank}"))
    dist.barrier()  # neither leaves while the other still needs it
    dist.destroy_process_group()


if __name__ == "__main__":
    _child(int(sys.argv[1]), sys.argv[2])

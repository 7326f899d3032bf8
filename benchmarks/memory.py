"""Measure speed, page faults and resident memory of training that keeps freed memory, against glibc's default.

    python benchmarks/memory.py [--batches 256 1024] [--steps 20] [--rounds 3]

Steps of SimCLR with the convnet on 32x32 pixels, one thread; views are made before. Each measurement runs in its own
process, because the setting lasts until a process ends; both sides take turns. `memory` is the largest resident memory
of the process.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from eagleray.blocks.optimizers import make_optimizer
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, DataInfo, Progress
from eagleray.runs.allocator import keep_freed_memory
from eagleray.runs.assemble import build_method
from eagleray.runs.device import autocast_for

NOW = Progress(step=0, steps=1000, epoch=0, epochs=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="*", type=int, default=[256, 1024])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("kept", "glibc"), help="measure this one side, in this process")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.batches[0], arguments.steps)))
        return
    print(f"{'batch':>6} {'side':6}{'images/s':>10}{'faults a step':>15}{'memory':>10}")
    for batch in arguments.batches:
        rows: dict[str, list[dict[str, float]]] = {"glibc": [], "kept": []}
        for _ in range(arguments.rounds):
            for side, measured in rows.items():
                words = ["--side", side, "--batches", str(batch), "--steps", str(arguments.steps)]
                done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
                measured.append(json.loads(done.stdout))
        for side, measured in rows.items():
            speed, faults, memory = (statistics.median(row[key] for row in measured) for key in measured[0])
            print(f"{batch:6} {side:6}{speed:10,.0f}{faults:15,.0f}{memory:7,.0f} MB", flush=True)


def measure(side: str, size: int, steps: int) -> dict[str, float]:
    """Return images per second, page faults per step, and the largest resident memory in MB."""
    torch.set_num_threads(1)
    if side == "kept":
        keep_freed_memory()
    run = load_run(None, ["method=simclr", f"batch_size={size}"])
    info = DataInfo(32, 3, samples=10_000, classes=None, batch_size=size)
    method = build_method(run, info).to(memory_format=torch.channels_last).train()
    optimizer, autocast = make_optimizer(method, run.optimizer), autocast_for(run.precision, torch.device("cpu"))
    views = [torch.randn(size, 3, 32, 32).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    batch = Batch(views, torch.arange(size))

    def step() -> None:
        with autocast:
            loss = method(batch, NOW).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for _ in range(3):
        step()
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(steps):
        step()
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "speed": steps * size / seconds,
        "faults": (used.ru_minflt - faults) / steps,
        "memory": used.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()

"""Time and memory of NT-Xent: row blocks against the cross entropy of the whole matrix, and against lightly's.

    python benchmarks/nt_xent.py [--images 256 1024 4096] [--rounds 5] [--out nt_xent.json]

Value and gradient, on one thread. The sides take turns, the processor's time counts, and ratios are taken turn by
turn. Memory is what the peak of a fresh process rises by (Linux alone tells).
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import lightly
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor

from eagleray.losses import nt_xent

TEMPERATURE = 0.2
RESET_PEAK = Path("/proc/self/clear_refs")  # writing 5 to it forgets the peak so far


def cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """The loss as it is usually written."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarities = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarities, torch.arange(len(z)).roll(len(first)))


SIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eagleray": lambda first, second: nt_xent(first, second, TEMPERATURE),
    "cross_entropy": cross_entropy,
    "lightly": NTXentLoss(temperature=TEMPERATURE),
}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    rows = [_compare(images, arguments) for images in arguments.images]
    print(f"{'images':>7}" + "".join(f"{side:>25}" for side in SIDES) + "   time and memory, times eagleray's")
    for row in rows:
        cells = (f"{row[side]['ms']:>14,.1f} ms {row[side]['MB']:>5,.0f} MB" for side in SIDES)
        ratios = (f"{side} {row[side]['time_ratio']:.1f}x {row[side]['memory_ratio']:.1f}x" for side in list(SIDES)[1:])
        print(f"{row['images']:>7}", *cells, "   ", ", ".join(ratios), sep="")
    if arguments.out:
        versions = {"torch": torch.__version__, "lightly": lightly.__version__}
        settings = {"width": arguments.width, "rounds": arguments.rounds, **versions}
        arguments.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


def _compare(images: int, arguments: argparse.Namespace) -> dict:
    views = _views(images, arguments.width)
    times = {side: [] for side in SIDES}
    for turn in range(arguments.rounds + 1):
        for side in SIDES:
            seconds = _seconds(side, views)
            if turn:  # the first warms up
                times[side].append(seconds)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {side: pool.apply(_peak, (side, images, arguments.width)) for side in SIDES}
    row = {side: {"ms": 1000 * statistics.median(times[side]), "MB": memory[side]} for side in SIDES}
    for side in SIDES:
        ratio = statistics.median(a / b for a, b in zip(times[side], times["eagleray"], strict=True))
        row[side] |= {"time_ratio": ratio, "memory_ratio": memory[side] / memory["eagleray"]}
    return {"images": images, **row}


def _views(images: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(images, width, generator=generator).requires_grad_() for _ in range(2))
    return first, second


def _seconds(side: str, views: tuple[Tensor, Tensor]) -> float:
    """CPU seconds of a value and its gradient; small batches are repeated."""
    repeats = max(1, 1024 // len(views[0]))
    start = time.process_time()
    for _ in range(repeats):
        torch.autograd.grad(SIDES[side](*views), views)
    return (time.process_time() - start) / repeats


def _peak(side: str, images: int, width: int) -> float:
    """MB that one value and its gradient need at their peak, in a process that has done nothing else."""
    if not RESET_PEAK.exists():
        return float("nan")
    torch.set_num_threads(1)
    _seconds(side, _views(8, width))  # loads the libraries
    views = _views(images, width)
    RESET_PEAK.write_text("5")
    before = _status("VmRSS")
    torch.autograd.grad(SIDES[side](*views), views)
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))  # KiB to MB


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="NT-Xent: time and memory, against cross entropy and lightly.")
    parser.add_argument("--images", type=int, nargs="+", default=[256, 1024, 4096], help="images in a batch")
    parser.add_argument("--width", type=int, default=128, help="of the embeddings")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()

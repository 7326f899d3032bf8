"""Measure time and memory of losses that never form their matrix, against forming it, and against lightly's losses.

    python benchmarks/losses.py [--losses nt_xent barlow_twins vicreg] [--rounds 5] [--out losses.json]

Value and gradient for two views of N images with embeddings of D, on one thread. The sides take turns, CPU time is
counted, and ratios are computed for each turn. Memory is the increase of the peak of a new process (only on Linux).
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
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from torch import Tensor

from eagleray.blocks.losses import nt_xent
from eagleray_methods.barlow_twins import cross_correlation
from eagleray_methods.vicreg import vicreg_terms

Loss = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE, REDUNDANCY, WEIGHTS = 0.2, 0.005, (25.0, 25.0, 1.0)
RESET_PEAK = Path("/proc/self/clear_refs")  # writing 5 to it resets the peak


def cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """Compute NT-Xent as it is usually written."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarities = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarities, torch.arange(len(z)).roll(len(first)))


def barlow_twins(first: Tensor, second: Tensor) -> Tensor:
    invariance, redundancy = cross_correlation(first, second)
    return invariance + REDUNDANCY * redundancy


def barlow_twins_direct(first: Tensor, second: Tensor) -> Tensor:
    """Compute Barlow Twins' loss with the D x D matrix, as in the paper's pseudocode."""
    a, b = ((x - x.mean(0)) / x.std(0, correction=0) for x in (first, second))
    c = a.T @ b / len(a)
    diagonal = c.diagonal()
    return (1 - diagonal).square().sum() + REDUNDANCY * (c.square().sum() - diagonal.square().sum())


def vicreg(first: Tensor, second: Tensor) -> Tensor:
    invariance, variance, covariance = vicreg_terms(first, second)
    return WEIGHTS[0] * invariance + WEIGHTS[1] * variance + WEIGHTS[2] * covariance


def vicreg_direct(first: Tensor, second: Tensor) -> Tensor:
    """Compute VICReg's loss with two D x D matrices, as in the paper's pseudocode."""
    loss = WEIGHTS[0] * F.mse_loss(first, second)
    for z in (first, second):
        z = z - z.mean(0)
        c = z.T @ z / (len(z) - 1)
        hinge = F.relu(1 - (c.diagonal() + 1e-4).sqrt()).mean()
        off_diagonal = c.square().sum() - c.diagonal().square().sum()
        loss = loss + WEIGHTS[1] * hinge / 2 + WEIGHTS[2] * off_diagonal / z.shape[1]
    return loss


# Ours first, then the loss as it is usually written, then lightly's; and the shapes, images x width.
LOSSES: dict[str, tuple[dict[str, Loss], list[tuple[int, int]]]] = {
    "nt_xent": (
        {
            "eagleray": lambda first, second: nt_xent(first, second, TEMPERATURE),
            "direct": cross_entropy,
            "lightly": NTXentLoss(temperature=TEMPERATURE),
        },
        [(256, 128), (1024, 128), (4096, 128)],
    ),
    "barlow_twins": (
        {
            "eagleray": barlow_twins,
            "direct": barlow_twins_direct,
            "lightly": BarlowTwinsLoss(lambda_param=REDUNDANCY),
        },
        [(256, 512), (256, 2048), (256, 8192)],
    ),
    "vicreg": (
        {"eagleray": vicreg, "direct": vicreg_direct, "lightly": VICRegLoss(*WEIGHTS)},
        [(256, 512), (256, 2048), (256, 8192)],
    ),
}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    print(f"{'loss':14}{'N x D':>12}{'eagleray':>24}{'direct':>24}{'lightly':>24}   time, memory: times eagleray's")
    rows = []
    for loss in arguments.losses:
        for shape in LOSSES[loss][1]:
            rows.append(row := _compare(loss, shape, arguments.rounds))
            cells = (f"{side['ms']:>13,.1f} ms {side['MB']:>5,.0f} MB" for side in row["sides"].values())
            others = list(row["sides"].items())[1:]
            ratios = (f"{name} {side['time_ratio']:.1f}x {side['memory_ratio']:.1f}x" for name, side in others)
            print(f"{loss:14}{'{} x {}'.format(*shape):>12}", *cells, "   ", ", ".join(ratios), sep="", flush=True)
    if arguments.out:
        settings = {"rounds": arguments.rounds, "torch": torch.__version__, "lightly": lightly.__version__}
        arguments.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


def _compare(loss: str, shape: tuple[int, int], rounds: int) -> dict:
    views, sides = _views(*shape), LOSSES[loss][0]
    times = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides:
            seconds = _seconds(sides[side], views)
            if turn:  # the first warms up
                times[side].append(seconds)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {side: pool.apply(_peak, (loss, side, shape)) for side in sides}
    row = {side: {"ms": 1000 * statistics.median(times[side]), "MB": memory[side]} for side in sides}
    for side in sides:
        ratio = statistics.median(a / b for a, b in zip(times[side], times["eagleray"], strict=True))
        row[side] |= {"time_ratio": ratio, "memory_ratio": memory[side] / memory["eagleray"]}
    return {"loss": loss, "images": shape[0], "width": shape[1], "sides": row}


def _views(images: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(images, width, generator=generator).requires_grad_() for _ in range(2))
    return first, second


def _seconds(loss: Loss, views: tuple[Tensor, Tensor]) -> float:
    """Return the CPU seconds of a value and its gradient; small batches are repeated."""
    repeats = max(1, 2**17 // views[0].numel())
    start = time.process_time()
    for _ in range(repeats):
        torch.autograd.grad(loss(*views), views)
    return (time.process_time() - start) / repeats


def _peak(loss: str, side: str, shape: tuple[int, int]) -> float:
    """Return the peak memory in MB of one value and its gradient, in a process that has done nothing else."""
    if not RESET_PEAK.exists():
        return float("nan")
    torch.set_num_threads(1)
    of = LOSSES[loss][0][side]
    _seconds(of, _views(8, 128))  # loads the libraries
    views = _views(*shape)
    RESET_PEAK.write_text("5")
    before = _status("VmRSS")
    torch.autograd.grad(of(*views), views)
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))  # KiB to MB


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()

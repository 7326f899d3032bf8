"""Measure the cost of a method's step beyond its encoder passes: heads, losses, queues, teacher updates, optimizer.

    python benchmarks/methods.py [--methods simclr byol] [--batch 128] [--rounds 7] [--precision fp32] \\
        [--settings encoder.width=32]

The baseline runs images of the same shapes through the same encoders, forward and backward where the method trains
them, only forward where it does not (teachers), and nothing else, in the precision of a run. Both sides take turns, on
one thread; views are made before.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eagleray.augment.override import overridden
from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.config import load_run
from eagleray.config.registry import declared
from eagleray.contracts.batch import Batch, DataInfo, LabelledBatch, Progress
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.runs.allocator import keep_freed_memory
from eagleray.runs.assemble import build_method
from eagleray.runs.device import autocast_for

NOW = Progress(step=700, steps=1000, epoch=7, epochs=10)  # late enough for every queue


@dataclass(frozen=True)
class Pass:
    """One call of an encoder."""

    call: Callable[[Tensor], Tensor]  # its forward; for a ViT, the blocks on its patches
    shape: torch.Size
    trains: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="*", default=[name for name, one in declared("method").items() if not one.needs_run]
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--settings", nargs="*", default=[], help="of every run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    print(f"{'method':14}{'step':>10}{'passes':>10}{'more':>8}   encoder passes: trained, others")
    rows = {}
    for name in arguments.methods:
        rows[name] = row = compare(name, arguments.batch, arguments.rounds, arguments.precision, *arguments.settings)
        times = f"{row['step']:8.0f}ms{row['passes']:8.0f}ms{row['more']:>+8.0%}"
        print(f"{name:14}{times}   {row['trained']:g}, {row['others']:g}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"batch": arguments.batch, "methods": rows}, indent=1) + "\n")


def compare(name: str, size: int, rounds: int, wanted: str, *settings: str) -> dict[str, float]:
    """Return milliseconds of a step and of its encoder passes, and encoder passes per sample."""
    run = load_run(None, [f"method={name}", f"batch_size={size}"])
    network = ["encoder.depth=4", "encoder.dim=128"] if run.encoder.name == "vit_tiny" else []
    run = load_run(None, [f"method={name}", f"batch_size={size}", f"precision={wanted}", *network, *settings])
    info = DataInfo(32, 3, samples=10_000, classes=10, batch_size=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    method = build_method(run, info).train()
    if not method.encoder.has_tokens:
        method.to(memory_format=torch.channels_last)
    batch = batch_of(method, size)
    optimizer = make_optimizer(method, run.optimizer)
    autocast = autocast_for(run.precision, torch.device("cpu"))

    def step() -> None:
        set_rates(optimizer, run.optimizer, size, NOW)
        with autocast:
            loss = method(batch, NOW).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        method.before_step(NOW)
        optimizer.step()
        method.after_step(NOW)

    with recorded(method) as passes:
        step()
    inputs = [torch.randn(each.shape).requires_grad_(each.trains and len(each.shape) == 3) for each in passes]
    inputs = [x if x.ndim == 3 else x.to(memory_format=torch.channels_last) for x in inputs]

    def plain() -> None:
        for each, x in zip(passes, inputs, strict=True):
            with torch.set_grad_enabled(each.trains), autocast:
                features = each.call(x)
            if each.trains:
                features.sum().backward()

    times: dict[Callable[[], None], list[float]] = {step: [], plain: []}
    for _ in range(rounds):
        for side, taken in times.items():
            began = time.perf_counter()
            side()
            taken.append(time.perf_counter() - began)
    more = statistics.median(a / b - 1 for a, b in zip(times[step], times[plain], strict=True))
    trained, others = (sum(each.shape[0] for each in passes if each.trains == kind) / size for kind in (True, False))
    medians = {kind: 1000 * statistics.median(times[side]) for kind, side in (("step", step), ("passes", plain))}
    return {**medians, "more": more, "trained": trained, "others": others}


def batch_of(method: Method, size: int) -> Batch:
    """Draw random images in the shapes of the method's views, and labelled ones if it needs them."""
    layout = torch.contiguous_format if method.encoder.has_tokens else torch.channels_last
    section = load_run(None, []).augment
    sides = [view.size or 32 for view in overridden(method.views, section)]
    views = [torch.randn(size, 3, side, side).contiguous(memory_format=layout) for side in sides]
    labelled = None
    if method.needs & {"labels", "only_labels"}:
        few = size if "only_labels" in method.needs else size // 7
        labelled = LabelledBatch([torch.randn(few, 3, 32, 32)], torch.randint(10, (few,)), torch.arange(few))
    return Batch(views, torch.arange(size), labelled)


@contextmanager
def recorded(method: nn.Module) -> Iterator[list[Pass]]:
    """Record every call of an encoder of the method, including teachers, inside the block."""
    passes: list[Pass] = []
    encoders = [part for part in method.modules() if isinstance(part, Encoder)]
    for encoder in encoders:
        name = "tokens" if encoder.has_tokens else "forward"  # a ViT's forward calls tokens
        call = getattr(encoder, name)

        def noted(x: Tensor, call: Callable[[Tensor], Tensor] = call) -> Tensor:
            features = call(x)
            passes.append(Pass(call, x.shape, features.requires_grad))
            return features

        setattr(encoder, name, noted)
    try:
        yield passes
    finally:
        for encoder in encoders:
            delattr(encoder, "tokens" if encoder.has_tokens else "forward")


if __name__ == "__main__":
    main()

"""Measure training on a GPU: its numbers beside a CPU's, images a second, and what waits for the GPU.

    python benchmarks/gpu.py numbers --images FOLDER --out numbers.csv
    python benchmarks/gpu.py speed --images FOLDER [--seconds 6] [--rounds 3] --out speed.csv
    python benchmarks/gpu.py waits --images FOLDER
    python benchmarks/gpu.py recipes --images FOLDER [--methods simclr] [--seeds 0] [--epochs 200] --out recipes.csv

`numbers` trains some steps of every method with the real loop: on the CPU in float32, on the GPU in float32 (TF32 off),
and on the GPU in bf16; printed is how far each number of the report is from the CPU's. `speed` trains SimCLR with
ResNet-18, as it is, in float32, and with the images in torch's own layout; beside it the forward and backward passes
alone, which are the ceiling, and the views alone; both also with the encoder compiled by torch. All sides take turns.
`waits` names the lines of one training step at which the CPU waits for the GPU, as torch tells them. `recipes` trains
ResNet-18 to the end with the methods' own settings; each row is a run.

It needs neither Ray nor MLflow.
"""

import argparse
import csv
import statistics
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eagleray.config import Run, load_run
from eagleray.config.registry import declared
from eagleray.contracts.report import Report
from eagleray.loop import train
from eagleray.runs.assemble import Assembly, assemble

SMALL_VIT = ["encoder.depth=4", "encoder.dim=128"]
GPU = torch.device("cuda")
Row = dict[str, Any]
Rows = list[Row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("numbers", "speed", "waits", "recipes"))
    parser.add_argument("--images", required=True, help="a folder of images of 32x32 pixels")
    parser.add_argument("--batch", type=int, nargs="*", default=[512, 1024], help="of `speed`")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement of `speed`")
    parser.add_argument("--rounds", type=int, default=3, help="of `speed`")
    parser.add_argument("--methods", nargs="*", default=["simclr"], help="of `recipes`")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of `recipes`")
    parser.add_argument("--epochs", type=int, default=200, help="of `recipes`")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: Rows = []
    for row in {"numbers": numbers, "speed": speed, "waits": waits, "recipes": recipes}[given.part](given):
        rows.append(row)
        if given.out:  # after each row: a limit of time may end this
            write(rows, given.out)


def write(rows: Rows, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def settings(images: str, *more: str) -> Run:
    """Return a run on a folder of images that is evaluated at its end alone."""
    asked = ["data=folder", f"data.root={images}", "data.channels=rgb", "evaluate.every=100000"]
    return load_run(None, [*asked, "checkpoints.every_epochs=100000", *more])


def numbers(given: argparse.Namespace) -> Iterator[Row]:
    """Return the numbers of some steps of every method, on both devices."""
    torch.backends.cudnn.allow_tf32 = False
    for name, one in declared("method").items():
        if one.needs_run:
            continue
        network = SMALL_VIT if load_run(None, [f"method={name}"]).encoder.name == "vit_tiny" else []
        asked = [f"method={name}", "data.limit=1024", "batch_size=128", "epochs=1", "evaluate.linear.when=never"]
        found = {}
        for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
            run = settings(given.images, *asked, *network, f"device={device}", f"precision={precision}")
            with tempfile.TemporaryDirectory() as folder:
                found[f"{device}_{precision}"] = list(train(run, Path(folder)))[-1].metrics
        for metric in found["cpu_fp32"]:
            yield {"method": name, "metric": metric, **{side: each[metric] for side, each in found.items()}}
        far = {side: abs(each["loss"] / found["cpu_fp32"]["loss"] - 1) for side, each in found.items()}
        print(f"{name:14} loss {found['cpu_fp32']['loss']:9.5f}, relative distance of the GPU's: ", end="")
        print(f"fp32 {far['cuda_fp32']:.1e}, bf16 {far['cuda_bf16']:.1e}", flush=True)


def speed(given: argparse.Namespace) -> Iterator[Row]:
    """Return images a second of SimCLR with ResNet-18, and of its parts."""
    sides = {
        "training, bf16": lambda run: rate(run, given.seconds),
        "training, fp32 (TF32 in convolutions)": lambda run: rate(with_(run, precision="fp32"), given.seconds),
        "training, bf16, layout NCHW": lambda run: rate(run, given.seconds, contiguous=True),
        "training, bf16, encoder compiled": lambda run: rate(run, given.seconds, compiled=True),
        "passes alone, bf16": lambda run: passes(run, given.seconds),
        "passes alone, bf16, encoder compiled": lambda run: passes(run, given.seconds, compiled=True),
        "views alone": lambda run: views(run, given.seconds),
    }
    for batch in given.batch:
        found: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(given.rounds):
            for side, measure in sides.items():
                run = settings(given.images, "encoder=resnet18", f"batch_size={batch}", "epochs=100000", "device=cuda")
                found[side].append(measure(run))
                yield {"batch": batch, "round": number, "side": side, "images_per_second": round(found[side][-1], 1)}
        for side, rates in found.items():
            print(f"batch {batch}: {side:40}{statistics.median(rates):10,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)


def with_(run: Run, **values: Any) -> Run:
    return run.model_copy(update=values)


def rate(run: Run, seconds: float, *, contiguous: bool = False, compiled: bool = False) -> float:
    """Return the loop's images per second."""

    def build(*arguments: Any, **options: Any) -> Assembly:
        built = assemble(*arguments, **options)
        if contiguous:
            built.loader.layout = torch.contiguous_format
            built.method.to(memory_format=torch.contiguous_format)
        if compiled:
            built.method.encoder.compile()
        return built

    ends: list[tuple[int, float]] = []  # steps and seconds of training at the ends of epochs
    with tempfile.TemporaryDirectory() as folder:
        reports = between_epochs(train(run, Path(folder), build=build))
        while not ends or ends[-1][1] - ends[0][1] < seconds:
            report = next(reports)
            step = report.progress.step
            if step >= 60:  # before that, libraries choose their kernels
                ends.append((step, step * run.batch_size / report.images_per_second))
    (first, began), (last, ended) = ends[0], ends[-1]
    return (last - first) * run.batch_size / (ended - began)


def between_epochs(reports: Iterator[Report]) -> Iterator[Report]:
    """Pass on the reports at the ends of epochs, whose numbers have been waited for."""
    return (report for report in reports if report.epoch_ended)


def passes(run: Run, seconds: float, *, compiled: bool = False) -> float:
    """Return images per second through the encoder alone, both views forward and backward."""
    built = assemble(run)
    encoder, side = built.method.encoder.train(), built.loader.info.image_size
    if compiled:
        encoder.compile()
    shape = (2 * run.batch_size, 3, side, side)
    images = torch.randn(shape, device=GPU).contiguous(memory_format=built.loader.layout)

    def step() -> None:
        with built.autocast:
            features = encoder(images)
        features.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)

    return run.batch_size * times_a_second(step, seconds)


def views(run: Run, seconds: float) -> float:
    """Return images per second of the loader alone."""
    built = assemble(run)
    batches = (batch for epoch in range(10**6) for batch in built.loader.epoch(epoch, 0))
    return run.batch_size * times_a_second(lambda: next(batches), seconds)


def times_a_second(call: Any, seconds: float) -> float:
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        count += 20
    return count / (time.perf_counter() - began)


def waits(given: argparse.Namespace) -> Iterator[Row]:
    """Print the lines of this code at which a step waits for the GPU."""
    for name in ("simclr", "byol", "moco", "swav", "dino", "barlow_twins", "vicreg", "fixmatch"):
        run = settings(given.images, f"method={name}", "encoder=resnet18", "batch_size=512", "epochs=2", "device=cuda")
        with tempfile.TemporaryDirectory() as folder:
            found, steps = waited(run, Path(folder))
        print(f"{name}: {sum(found.values()) / steps:.1f} waits a step")
        for where, count in found.most_common(12):
            print(f"    {count / steps:6.2f}  {where}")
            yield {"method": name, "line": where, "a step": round(count / steps, 2)}


def waited(run: Run, folder: Path) -> tuple[Counter[str], int]:
    """Count the waits of an epoch's steps, by line."""
    found: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" not in str(message):
            return
        own = [frame for frame in traceback.extract_stack() if "/eagleray" in frame.filename]
        if own and "checkpoint" not in own[-1].filename:  # it is written at the end alone
            found[f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].line}"] += 1

    steps = 0

    def build(*arguments: Any, **options: Any) -> Assembly:
        nonlocal steps
        built = assemble(*arguments, **options)
        steps = built.loader.steps_per_epoch
        return replace(built, evaluation=Quiet(built.evaluation))  # pyright: ignore[reportArgumentType]

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        for report in between_epochs(train(run, folder, build=build)):
            if report.progress.epoch == 1:
                torch.cuda.set_sync_debug_mode("warn")
    torch.cuda.set_sync_debug_mode("default")
    return found, steps


def recipes(given: argparse.Namespace) -> Iterator[Row]:
    """Train methods to the end; return what each run was worth."""
    for seed in given.seeds:
        for name in given.methods:
            asked = ["encoder=resnet18", "batch_size=512", "evaluate.test=true", "device=cuda", f"seed={seed}"]
            run = settings(given.images, f"method={name}", f"epochs={given.epochs}", *asked)
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                last = list(train(run, Path(folder)))[-1]
            took = {"seconds": round(time.perf_counter() - began, 1)}
            row = {"method": name, "seed": seed, "epochs": given.epochs, **took, **last.numbers}
            shown = ("seconds", "images_per_second", "knn", "linear", "test_knn", "test_linear")
            print(
                f"{name} seed {seed}: {', '.join(f'{key} {row[key]:.4g}' for key in shown if key in row)}", flush=True
            )
            yield row


class Quiet:
    """An evaluation that does nothing at the end of a run."""

    def __init__(self, real: Any):
        self.embed = real.embed

    def __call__(self, *_: Any, **__: Any) -> dict[str, float]:
        return {}


if __name__ == "__main__":
    main()

"""Compare SimCLR end to end, in images per second: our loop and lightly's, with the same data, network and batch.

lightly's side is its SimCLR example: a folder of images, its transform (PIL, one image at a time), its head and loss, a
torch DataLoader; the best of workers {0, 1, 2} x threads {1, 2} counts. Each round measures every contender once, one
after the other, so that a slow minute of the machine affects all of them.

    python benchmarks/simclr.py [--images FOLDER] [--rounds 3] [--seconds 8] [--out simclr.json]

Without a folder, scikit-learn's digits are written to one as colour images of 32x32 pixels.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from eagleray.config import load_run
from eagleray.data.images import Data
from eagleray.loop import train
from eagleray.runs.assemble import build_method, images_of
from eagleray.runs.device import uses_bf16

TEMPERATURE, HIDDEN, PROJECTION = 0.2, 512, 128


def ours(folder: str, batch: int, seconds: float, precision: str, threads: int) -> float:
    """Return images per second of the loop, without evaluation."""
    torch.set_num_threads(threads)
    settings = [
        "data=folder", f"data.root={folder}", "data.channels=rgb",
        f"batch_size={batch}", f"precision={precision}", "epochs=1000", "evaluate.every=1000",
        "checkpoints.every_epochs=1000",
        f"method.temperature={TEMPERATURE}", f"method.hidden={HIDDEN}", f"method.projection={PROJECTION}",
        "optimizer.name=adamw", "optimizer.lr=2e-3",  # as on lightly's side
    ]  # fmt: skip
    run = load_run(None, settings)
    data = _data(folder, run)
    with tempfile.TemporaryDirectory() as directory:
        return _rate((r.progress.step for r in train(run, Path(directory), data=data)), batch, seconds)


def lightly(folder: str, batch: int, seconds: float, workers: int, threads: int) -> float:
    """Return images per second of lightly's example, with the network of `ours`."""
    torch.set_num_threads(threads)
    run = load_run(None, ["data=folder", f"data.root={folder}", "data.channels=rgb"])
    info = _data(folder, run).info
    encoder = build_method(run, info).encoder
    model = nn.Sequential(encoder, SimCLRProjectionHead(encoder.dim, HIDDEN, PROJECTION))
    loss_of = NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    transform = SimCLRTransform(input_size=info.image_size, cj_strength=0.5, gaussian_blur=0.0)
    train_folder = Path(folder) / "train" if (Path(folder) / "train").is_dir() else Path(folder)
    dataset = LightlyDataset(str(train_folder), transform=transform)
    loader = DataLoader(
        dataset, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )

    def steps() -> Iterator[int]:
        done = 0
        while True:
            for (first, second), *_ in loader:
                loss = loss_of(model(first), model(second))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
                yield done

    return _rate(steps(), batch, seconds)


def _rate(steps: Iterator[int], batch: int, seconds: float) -> float:
    """Return images per second from the first step on: the start is not counted, on both sides."""
    first = next(steps)
    began = time.perf_counter()
    last, spent = first, 0.0
    while spent < seconds or last == first:
        last = next(steps)
        spent = time.perf_counter() - began
    close = getattr(steps, "close", None)
    if close is not None:
        close()
    return (last - first) * batch / spent


_loaded: dict[str, Data] = {}


def _data(folder: str, run) -> Data:
    if folder not in _loaded:
        _loaded[folder] = images_of(run)
    return _loaded[folder]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of images, class folders or train/ and test/ inside")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--out", type=Path, default=Path("simclr.json"))
    a = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        measure(a.images or write_digits(Path(folder)), a)


def write_digits(folder: Path) -> str:
    """Write scikit-learn's digits as JPEG files of 32x32 pixels, in colour as the encoder needs them."""
    for number, (image, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        place = folder / "train" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = (image.reshape(8, 8) * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).convert("RGB").resize((32, 32)).save(place / f"{number}.jpg")
    return str(folder)


def measure(folder: str, a: argparse.Namespace) -> None:
    """Measure every contender in every round; print the medians and keep the numbers."""
    contenders: dict[str, Callable[[], float]] = {}
    for threads in (1, 2):
        for precision in ("fp32", "bf16") if uses_bf16("auto", torch.device("cpu")) else ("fp32",):
            name = f"eagleray {precision}, threads {threads}"
            contenders[name] = lambda p=precision, t=threads: ours(folder, a.batch, a.seconds, p, t)
    for workers, threads in product((0, 1, 2), (1, 2)):
        name = f"lightly workers {workers}, threads {threads}"
        contenders[name] = lambda w=workers, t=threads: lightly(folder, a.batch, a.seconds, w, t)

    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(a.rounds):
        for name, contender in contenders.items():
            rates[name].append(contender())
            print(f"{name:32} {rates[name][-1]:8.0f} images/s", flush=True)

    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(value for name, value in medians.items() if name.startswith("lightly"))
    print(f"\n{'median':32} {'images/s':>8}  of lightly's best")
    for name, value in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"{name:32} {value:8.0f}  {value / best:5.2f}x")
    a.out.write_text(json.dumps({"rates": rates, "medians": medians, "lightly_best": best}, indent=1))


if __name__ == "__main__":
    main()

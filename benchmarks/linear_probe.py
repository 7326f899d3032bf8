"""Compare the linear probe with 100 epochs of SGD on the same cached features: time and accuracy.

    python benchmarks/linear_probe.py [--features FILE.pt | --idx FOLDER] [--rounds 3] [--out linear_probe.json]

Each image has 512 features: those in FILE.pt (a dict of "train" and "test", each a pair of features and labels), or of
a random convolutional net on the images of an idx FOLDER (MNIST, Fashion-MNIST), or else noisy clusters. One thread;
the sides take turns, CPU time is counted, and ratios are computed for each turn. SGD gets its best learning rate; the
time to find it is not counted.
"""

import argparse
import gzip
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagleray.contracts.features import Features, accuracy
from eagleray.evaluators.linear import linear

EPOCHS, BATCH = 100, 256


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    train, test = _features(arguments)
    rate = (
        max(arguments.rates, key=lambda rate: sgd(train, test, rate))
        if len(arguments.rates) > 1
        else arguments.rates[0]
    )
    sides = {"eagleray": lambda: linear(train, test)["linear"], "sgd": lambda: sgd(train, test, rate)}
    sides["eagleray"]()
    seconds, scores = {side: [] for side in sides}, {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, run in sides.items():
            start = time.process_time()
            scores[side].append(run())
            seconds[side].append(time.process_time() - start)
    rows = {
        side: {"seconds": statistics.median(seconds[side]), "accuracy": statistics.median(scores[side])}
        for side in sides
    }
    ratio = statistics.median(a / b for a, b in zip(seconds["sgd"], seconds["eagleray"], strict=True))
    lost = 100 * (rows["sgd"]["accuracy"] - rows["eagleray"]["accuracy"])
    for side, row in rows.items():
        print(f"{side:>10}{row['seconds']:>9.2f} s{row['accuracy']:>9.4f}")
    print(f"{ratio:.1f} times as fast, {lost:+.2f} points of accuracy given up; SGD at learning rate {rate}")
    if arguments.out:
        settings = {"train": len(train), "test": len(test), "width": train.features.shape[1], "rate": rate}
        result = {"settings": settings | {"torch": torch.__version__}, "rows": rows, "ratio": ratio, "points": lost}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def sgd(train: Features, test: Features, rate: float) -> float:
    """Return the accuracy of the usual probe: standardised features, SGD with momentum, cosine schedule."""
    mean, deviation = train.features.mean(0), train.features.std(0).clamp_min(1e-6)
    features, labels = (train.features - mean) / deviation, train.targets()
    torch.manual_seed(0)
    probe = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.SGD(probe.parameters(), rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(train) // BATCH))
    for _ in range(EPOCHS):
        for index in torch.randperm(len(train)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(probe(features[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return accuracy(probe((test.features - mean) / deviation).argmax(1), test.targets())


def _features(arguments: argparse.Namespace) -> tuple[Features, Features]:
    if arguments.features:
        parts = torch.load(arguments.features, weights_only=True)
        return Features(*parts["train"]), Features(*parts["test"])
    if arguments.idx:
        return _encoded(arguments.idx, "train"), _encoded(arguments.idx, "t10k")
    return _clusters(60_000, seed=1), _clusters(10_000, seed=2)


@torch.no_grad()
def _encoded(folder: Path, part: str) -> Features:
    """Compute features with a random net: three convolutions with batch statistics, pooled to 2 x 2."""
    images, labels = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16), _idx(folder / f"{part}-labels-idx1-ubyte.gz", 8)
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in ((1, 64), (64, 128), (128, 128))
    ]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()).train()
    batches = images.view(-1, 1, 28, 28).float().div(255).split(1000)
    return Features(torch.cat([net(batch) for batch in batches]), labels.long())


def _idx(file: Path, header: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header).copy())


def _clusters(count: int, seed: int, width: int = 512, classes: int = 10) -> Features:
    """Draw Gaussian clusters in noise that decreases over the dimensions, like the spectrum of real features."""
    generator = torch.Generator().manual_seed(99)
    centres = torch.randn(classes, width, generator=generator)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    generator.manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, width, generator=generator) * torch.logspace(1.5, 0.3, width)
    return Features((centres[labels] + noise) @ mixing, labels)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--features", type=Path, help="cached features, a .pt file")
    source.add_argument("--idx", type=Path, help="folder of the four .gz files of MNIST or Fashion-MNIST")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.01, 0.1], help="learning rates SGD may choose from"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()

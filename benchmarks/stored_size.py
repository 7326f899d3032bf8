"""Measure cost and gain of storing photos whole and larger than their views, against squares of the views' size.

    python benchmarks/stored_size.py FOLDER [--size 64] [--stored 64 128] [--epochs 20] [--seeds 3] [--out photos.csv]

FOLDER has photos of several shapes in class folders. The square side trains on a copy of it with the middle of each
image, resized by its shorter side, as files of `size` x `size` pixels: crops then come only from the area that
evaluation sees. The other sides are the folder itself with `data.stored_size`. The sides take turns, seed by seed, on
one thread; intervals are of the differences between runs of one seed (Student's t, 95 %). Times are CPU times:
`views_ms` to read an image and make its views, `training_ms` per training image and epoch of the whole run, including
evaluation; `seconds_to_store` to decode all files and write the cache.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps
from scipy.stats import t

from eagleray.config import Run, load_run
from eagleray.data.images import load_data
from eagleray.loop import train
from eagleray.runs.assemble import assemble

MEASURED = ("knn", "test_knn", "linear", "test_linear", "views_ms", "training_ms", "mebibytes", "seconds_to_store")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64, help="side of the views")
    parser.add_argument("--stored", type=int, nargs="*", default=[64, 128], help="values of data.stored_size")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="further settings of all runs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, float | str | int]] = []
    with tempfile.TemporaryDirectory() as place:
        squares = cut(arguments.folder, Path(place) / "squares", arguments.size)
        sides = {"squares": [f"data.root={squares}"]}
        for stored in arguments.stored:
            sides[f"whole {stored}"] = [f"data.root={arguments.folder}", f"data.stored_size={stored}"]
        for seed in range(arguments.seeds):
            for side, chosen in sides.items():
                cache = Path(place) / f"{side} {seed}"
                settings = [*chosen, f"data.cache={cache}", f"data.size={arguments.size}", f"seed={seed}"]
                row = {"side": side, "seed": seed, **measured(configured(settings, arguments), cache)}
                rows.append(row)
                print(*(f"{value:.4g}" if isinstance(value, float) else value for value in row.values()), flush=True)
                write(rows, arguments.out)
    report(rows)


def write(rows: Sequence[dict[str, float | str | int]], out: Path | None) -> None:
    if out is None:
        return
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def configured(settings: Sequence[str], arguments: argparse.Namespace) -> Run:
    fixed = ["data=folder", "data.labels=folders", "threads=1", "evaluate.linear=end", "evaluate.test=true"]
    return load_run(None, [*fixed, f"epochs={arguments.epochs}", *settings, *arguments.set])


def cut(folder: Path, into: Path, size: int) -> Path:
    """Write a copy of a folder with square images; none is enlarged without need."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        place = into / path.relative_to(folder).with_suffix(f"{path.suffix}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            ImageOps.fit(upright.convert("RGBA"), (size, size), Image.Resampling.BILINEAR).save(place)
    return into


def measured(run: Run, cache: Path) -> dict[str, float]:
    """Store the images and train on them; return metrics and costs."""
    start = time.process_time()
    data = load_data(run.data.name, run.data.config, run.data.settings, run.seed)
    stored = time.process_time() - start
    size = sum(path.stat().st_size for path in cache.glob("*.bin")) / 2**20
    loader = assemble(run, data=data).loader
    start = time.process_time()
    batches = sum(1 for _ in loader.epoch(0, 0))
    views = (time.process_time() - start) / (batches * run.batch_size)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        last = deque(train(run, Path(directory), data=data), maxlen=1)[0]
    training = (time.process_time() - start) / (batches * run.batch_size * run.epochs)
    costs = {"views_ms": 1000 * views, "training_ms": 1000 * training, "mebibytes": size, "seconds_to_store": stored}
    return {name: float({**last.metrics, **costs}[name]) for name in MEASURED}


def report(rows: Sequence[dict[str, float | str | int]]) -> None:
    """Print each side's means, and its differences from the squares with their intervals."""
    sides = list(dict.fromkeys(str(row["side"]) for row in rows))
    for name in MEASURED:
        values = {side: [float(row[name]) for row in rows if row["side"] == side] for side in sides}
        for side in sides:
            line = f"{name:18} {side:12} {statistics.fmean(values[side]):9.4g}"
            if side != "squares" and len(values[side]) > 1:
                steps = [a - b for a, b in zip(values[side], values["squares"], strict=True)]
                half = t.ppf(0.975, len(steps) - 1) * statistics.stdev(steps) / len(steps) ** 0.5
                line += f"   difference {statistics.fmean(steps):+.4g} ± {half:.2g}"
            print(line)


if __name__ == "__main__":
    main()

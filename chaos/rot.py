"""Flip bits in what runs have written, put zeros there, cut it short; nothing damaged may be used.

    python chaos/rot.py [--checkpoints 1000] [--others 200] [--caches 60] [--out rot.csv]

A run leaves checkpoints, an encoder, its texts; a folder of images leaves a cache of pixels. Each injury damages one
file in a random way at a random place. The newest checkpoint: the one before it must be taken, the damaged one named.
An encoder or a text: it must be refused with its name. The cache: it must be made again with the same pixels. Some runs
are continued with a damaged checkpoint, and must end with the weights of the undisturbed run.
"""

import argparse
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from observed import TINY, concluded, differences, leaves
from PIL import Image
from repetition import alone

from eagleray.config import Run, load_run
from eagleray.contracts.errors import Damaged, Skipped
from eagleray.data.images import Data
from eagleray.runs.assemble import images_of
from eagleray.runs.checkpoint import checkpoints, last_state
from eagleray.runs.export.encoder import WEIGHTS, check_weights, write_weights
from eagleray.runs.record import METRICS, Record

BLOCK = 4096  # bytes of zeros
TEXTS: dict[str, Callable[[Path], Any]] = {
    "run.yaml": lambda place: Record.open(place).file(),
    "record.json": Record.open,
    "status.json": lambda place: Record.open(place).status,
    METRICS: lambda place: Record.open(place).metrics(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--others", type=int, default=200, help="of the encoder and of each text")
    parser.add_argument("--caches", type=int, default=60)
    parser.add_argument("--resumed", type=int, default=10, help="runs that are continued")
    parser.add_argument("--out", type=Path, help="where to write a row for each injury, as CSV")
    given = parser.parse_args()
    draw, found = random.Random(0), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = load_run(None, [*TINY, "epochs=3", "checkpoints.keep=3"])
        place = alone(run, folder / "run")
        found += [of_checkpoint(place, draw) for _ in range(given.checkpoints)]
        encoder = folder / WEIGHTS
        weights = {each: value.contiguous() for each, value in leaves(last_state(place)["method"])}
        write_weights(encoder, weights, {"build": "{}"})
        found += [refused(encoder, lambda: check_weights(encoder), draw) for _ in range(given.others)]
        for text, read in TEXTS.items():
            found += [refused(place / text, lambda read=read: read(place), draw) for _ in range(given.others)]
        images = load_run(None, [*TINY, *make_images(folder), "batch_size=8"])
        images_of(images)  # fills the cache
        found += [of_cache(images, draw) for _ in range(given.caches)]
        found += [of_resumed(run, place, folder / f"resumed-{number}", draw) for number in range(given.resumed)]
    for file in dict.fromkeys(row["file"] for row in found):
        own = [row for row in found if row["file"] == file]
        print(f"{file}: {len(own)} damaged, detected: {sum(row['detected'] for row in own)}", flush=True)
    concluded(found, given.out)


def damaged(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Damage data in one of three ways; zeros where there were zeros are no damage, and another place is taken."""
    kind, place = draw.choice(("flip", "flip", "zeros", "cut")), draw.randrange(len(data))
    size = min(BLOCK, max(1, len(data) // 8))
    other = {
        "flip": data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :],
        "zeros": data[:place] + bytes(len(data[place : place + size])) + data[place + size :],
        "cut": data[:place],
    }[kind]
    return (kind, other) if other != data else damaged(data, draw)


@contextmanager
def damage(path: Path, draw: random.Random) -> Iterator[str]:
    """Damage a file while the block runs; give the kind."""
    whole = path.read_bytes()
    kind, other = damaged(whole, draw)
    path.write_bytes(other)
    try:
        yield kind
    finally:
        path.write_bytes(whole)


def row(file: str, kind: str, detected: bool, wrong: str = "") -> dict[str, Any]:
    return {"file": file, "kind": kind, "detected": int(detected), "broken": wrong or ("" if detected else "used")}


def of_checkpoint(place: Path, draw: random.Random) -> dict[str, Any]:
    *_, before, newest = checkpoints(place)
    with damage(newest, draw) as kind, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Skipped)
        try:
            step = last_state(place)["step"]
        except Exception as error:  # whatever it is, nobody has said which file is damaged
            return row("checkpoint", kind, False, f"raised {type(error).__name__}")
    is_named = any(newest.name in str(each.message) for each in said)
    fell_back = f"{step:09d}" in before.name
    return row("checkpoint", kind, is_named and fell_back)


def refused(path: Path, read: Callable[[], Any], draw: random.Random) -> dict[str, Any]:
    with damage(path, draw) as kind:
        try:
            read()
        except Damaged as error:
            return row(path.name, kind, True, "" if path.name in str(error) else f"not named: {error}")
    return row(path.name, kind, False)


def make_images(folder: Path) -> list[str]:
    """Make a folder of images; return the settings that read it."""
    noise = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(24):
            pixels = noise.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"images/{label}/{number}.png")
    return ["data=folder", f"data.root={folder}/images", f"data.cache={folder}/cache", "data.limit=null"]


def of_cache(run: Run, draw: random.Random) -> dict[str, Any]:
    """Damage the cache; what is read must be the same, and what was no damage to it (a date in a zip) may stay."""
    assert run.data.settings.cache
    path = draw.choice(sorted(path for path in run.data.settings.cache.iterdir() if path.suffix in (".bin", ".npz")))
    before, whole = content(images_of(run)), path.read_bytes()
    with damage(path, draw) as kind:
        is_equal = content(images_of(run)) == before
        is_made_again = path.read_bytes() == whole
    return {**row(f"cache{path.suffix}", kind, is_made_again), "broken": "" if is_equal else "other images"}


def content(data: Data) -> tuple[list[bytes], list[int]]:
    """Return the pixels and labels of the training images."""
    images = next(data.train.batches([torch.arange(len(data.train))]))
    return [np.asarray(image).tobytes() for image in images], np.asarray(data.train.labels).tolist()


def of_resumed(run: Run, whole: Path, place: Path, draw: random.Random) -> dict[str, Any]:
    """Stop a run after its second epoch, damage its newest checkpoint, and continue."""
    alone(run, place, stop=6)
    newest = checkpoints(place)[-1]
    kind, other = damaged(newest.read_bytes(), draw)
    newest.write_bytes(other)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Skipped)
        alone(run, place)
    return row(
        "a run continued", kind, any(newest.name in str(each.message) for each in said), differences(whole, place)
    )


if __name__ == "__main__":
    main()

"""Small runs for the tests of pictures: untrained networks with a checkpoint, made in a second."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from eagleray.config import load_run
from eagleray.pictures.trained import Trained
from eagleray.runs.assemble import fitted, images_of
from eagleray.runs.record import Record
from method_cases import finished_run

TINY = ["threads=1", "device=cpu", "precision=fp32", "batch_size=16"]


def digits(directory: Path, *settings: str) -> Path:
    """Return the directory of a run on digits."""
    return run_on(directory, "data=digits", "data.limit=60", *settings)


def photos(folder: Path, count: int, copies: int) -> list[str]:
    """Write random images, each several times, and return the settings for them: a flat folder without classes."""
    noise = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(count):
        pixels = noise.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        for copy in range(copies):
            Image.fromarray(pixels).save(folder / f"photos/{copy}-{number:02d}.png")
    place = f"data.root={folder / 'photos'}"
    return ["data=folder", place, f"data.cache={folder / 'cache'}", "data.validation=0", "data.size=16"]


def run_on(directory: Path, *settings: str, width: int | None = 8) -> Path:
    """Return the directory of a run with these settings, and this width of its network if it has one."""
    every = [*TINY, *settings, *([] if width is None else [f"encoder.width={width}"])]
    run = load_run(None, every)
    return finished_run(directory, fitted(run, images_of(run).info), *every)


def trained(directory: Path, make: Callable[..., Path] = digits, *settings: str, most: int = 2000) -> Trained:
    return Trained.of(Record.open(make(directory, *settings)), most)

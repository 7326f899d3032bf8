"""Decode image files.

Nothing here imports torch, so the processes that decode a streamed folder start fast.
"""

import math
import os
import stat
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from eagleray.contracts.dataset import Decoding
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.machine import cores
from eagleray.data.reading import refuse_huge, stored_image, stored_shape

CHUNK = 64  # files that a thread reads at a time
MOST_BYTES = 2**29  # of a file
LARGEST_SIZE = 64  # of views, unless a setting says otherwise
STORED = 2  # shorter side of a stored image / side of a view: with it, four of five SimCLR crops are not enlarged
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")

# Pillow warns of images that `refuse_huge` refuses, and of JPEGs that are decoded at a fraction of their size.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Bad:
    """A file that cannot be read as an image."""

    path: str
    reason: str


@dataclass(frozen=True)
class Look:
    """Facts from the head of an image file.

    No pixel is decoded for them.
    """

    height: int  # as in the file; the image may be turned upright later
    width: int
    grey: bool


@dataclass(frozen=True)
class Kept:
    """How images are decoded, and the memory they need."""

    size: int  # side of the views
    stored_size: int  # shorter side that larger images are reduced to
    channels: int
    total: int  # bytes of all images together


def settled(decoding: Decoding, paths: Sequence[str]) -> Kept:
    """Return how the images are decoded.

    The settings decide; otherwise it is as suits all of the images.
    """
    looks = [look for look in in_threads(look_at, paths) if isinstance(look, Look)]
    if not looks:  # every file is bad; decoding reports it
        return Kept(decoding.size or 1, decoding.stored_size or 1, decoding.channels or 1, total=0)
    shorter = statistics.median_low(min(look.height, look.width) for look in looks)
    size = decoding.size or min(LARGEST_SIZE, shorter)
    stored_size = decoding.stored_size or STORED * size
    channels = decoding.channels or (1 if all(look.grey for look in looks) else 3)
    pixels = sum(math.prod(stored_shape(look.height, look.width, stored_size)) for look in looks)
    return Kept(size, stored_size, channels, total=channels * pixels)


def look_at(path: str) -> Look | Bad:
    """Read an image's size and kind from its head."""
    try:
        with opened(path) as image:
            return Look(image.height, image.width, image.mode in GREY_MODES or _grey_palette(image))
    except Exception as error:  # a damaged file can make Pillow raise anything
        return Bad(path, _reason(error))


def decode(path: str, size: int, channels: int) -> np.ndarray | Bad:
    """Decode an image file to uint8 [channels, H, W].

    It is as training stores it.
    """
    try:
        with opened(path) as file:
            image = stored_image(file, size, channels)
    except Exception as error:  # a damaged file can make Pillow raise anything
        return Bad(path, _reason(error))
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def decode_all(paths: Sequence[str], size: int, channels: int) -> list[np.ndarray]:
    """Decode image files to uint8 [channels, H, W] each.

    Raises:
        ConfigError: one of them cannot be read.
    """
    images = [decode(path, size, channels) for path in paths]
    bad = next((image for image in images if isinstance(image, Bad)), None)
    if bad is not None:
        raise ConfigError(f"{bad.path} could be read when all images were checked, but cannot now: {bad.reason}")
    return [image for image in images if not isinstance(image, Bad)]


def opened(path: str) -> Image.Image:
    """Open an image file, none of whose pixels is decoded yet.

    Raises:
        OSError, ValueError: it is no image, is a pipe, for which one could wait forever, or is EPS, a program that
            Ghostscript would run.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("not a regular file")
    if state.st_size > MOST_BYTES:  # some formats are read whole
        raise ValueError(f"it has {state.st_size:,} bytes, more than an image can have ({MOST_BYTES:,})")
    image = Image.open(path)
    if image.format == "EPS":
        image.close()
        raise ValueError("EPS, which is a program; save it as PNG")
    return image


def in_threads(function: Callable[..., Any], paths: Sequence[str], *arguments: Any) -> Iterator[Any]:
    """Apply a function to files, in order, on all cores.

    Threads are enough: Pillow releases Python's lock while it decodes.
    """

    def of_chunk(start: int) -> list[Any]:
        return [function(path, *arguments) for path in paths[start : start + CHUNK]]

    with ThreadPoolExecutor(cores()) as pool:
        for results in pool.map(of_chunk, range(0, len(paths), CHUNK)):
            yield from results


def _grey_palette(image: Image.Image) -> bool:
    if image.mode != "P":
        return False
    refuse_huge(image)  # its palette is read together with its pixels
    palette = image.getpalette("RGB")
    return palette is not None and palette[0::3] == palette[1::3] == palette[2::3]


def _reason(error: Exception) -> str:
    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__

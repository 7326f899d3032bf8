"""Image files to pixels. Imports no torch: the processes that decode a streamed folder start in a moment."""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from eagleray.contracts.dataset import Decoding
from eagleray.contracts.errors import ConfigError

CHUNK = 64  # files a thread takes at a time
LARGEST_SIZE = 64  # of images whose size nobody said
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Bad:
    """A file that cannot be read as an image."""

    path: str
    reason: str


@dataclass(frozen=True)
class Look:
    """What a file says of its image before any pixel is decoded."""

    side: int  # the shorter one
    grey: bool


def settled(decoding: Decoding, paths: Sequence[str]) -> tuple[int, int]:
    """Size and channels of the decoded images: as said, else what suits them all."""
    if decoding.size and decoding.channels:
        return decoding.size, decoding.channels
    looks = [look for look in in_threads(look_at, paths) if isinstance(look, Look)]
    if not looks:
        return decoding.size or 1, decoding.channels or 1  # every file is bad, and decoding them says so
    size = decoding.size or min(LARGEST_SIZE, statistics.median_low(look.side for look in looks))
    return size, decoding.channels or (1 if all(look.grey for look in looks) else 3)


def look_at(path: str) -> Look | Bad:
    """Size and kind of an image, read from the head of its file."""
    try:
        with Image.open(path) as image:
            return Look(min(image.size), image.mode in GREY_MODES or _grey_palette(image))
    except Exception as error:  # a damaged file can make Pillow raise anything
        return Bad(path, _reason(error))


def decode(path: str, size: int, channels: int) -> np.ndarray | Bad:
    """An image file as uint8 [channels, size, size]: turned upright, shorter side resized, centre cut out.

    Of 16 bits a channel the upper eight are kept; what is transparent becomes white.
    """
    try:
        with Image.open(path) as image:
            image.draft(None, (2 * size, 2 * size))  # a JPEG far too large is decoded at a half, a quarter or an eighth
            upright = ImageOps.exif_transpose(image)
            plain = _opaque(_eight_bits(upright)).convert("L" if channels == 1 else "RGB")
            fitted = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # a damaged file can make Pillow raise anything
        return Bad(path, _reason(error))
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def decode_batch(paths: Sequence[str], size: int, channels: int) -> np.ndarray:
    """Image files as uint8 [N, channels, size, size].

    Raises:
        ConfigError: one of them cannot be read.
    """
    batch = np.empty((len(paths), channels, size, size), np.uint8)
    for place, path in zip(batch, paths, strict=True):
        image = decode(path, size, channels)
        if isinstance(image, Bad):
            raise ConfigError(f"{path} could be read when the images were looked through, but now: {image.reason}")
        place[:] = image
    return batch


def in_threads(function: Callable[..., Any], paths: Sequence[str], *arguments: Any) -> Iterator[Any]:
    """The function of each file, in order, on all cores: Pillow lets go of Python's lock while it decodes."""

    def of_chunk(start: int) -> list[Any]:
        return [function(path, *arguments) for path in paths[start : start + CHUNK]]

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(of_chunk, range(0, len(paths), CHUNK)):
            yield from results


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips a wide grey image at 255 where it converts it; here it keeps its upper eight bits."""
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits, whose range no file tells")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def _grey_palette(image: Image.Image) -> bool:
    palette = image.getpalette("RGB") if image.mode == "P" else None
    return palette is not None and palette[0::3] == palette[1::3] == palette[2::3]


def _reason(error: Exception) -> str:
    return "no image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__

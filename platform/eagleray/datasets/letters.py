"""Letters in many fonts, drawn on the spot.

The fonts come with matplotlib, Pillow draws them. All arithmetic is in whole numbers, so the pixels are the same on
every machine with the same versions.
"""

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel

from eagleray.contracts.dataset import Dataset, Part, PartName
from eagleray.contracts.seeds import Stream, numpy_generator

LETTERS = "bdpqaegkrs"  # b mirrored is d, p is q: a view that mirrors turns one class into another
EACH = 300  # images of each letter
SIDE = 32
SIZES = (18, 28)  # of the font, pixels
GRADIENT = 48  # largest difference of a background's channel from its middle
CONTRAST = 80  # smallest difference of a letter's channel from the middle of its background
FONTS = (
    *(f"DejaVu{face}" for face in ("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)


class Letters(Dataset):
    """3,000 letters of 32x32 pixels in ten classes (bdpqaegkrs): 20 fonts, any colour, size and place.

    Drawn in a second from matplotlib's own fonts, and stored like a download. Colour and background say nothing of the
    letter, and pixels little: raw pixels and an untrained network do badly, and the right views make the difference. It
    has no split of its own, so the engine's fixed fifth is the test set.
    """

    names: ClassVar[tuple[str, ...]] = ("letters",)

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Nothing to set."""

    config: Config

    def __init__(self, name: str, config: Config):
        super().__init__(name, config)
        # Pillow's version counts for all sources.
        self.made_with = " ".join(f"{package} {version(package)}" for package in ("matplotlib", "numpy"))

    def parts(self) -> dict[PartName, Part]:
        labels = np.arange(len(LETTERS) * EACH) % len(LETTERS)
        return {"train": Part(np.stack([drawn(number, LETTERS[label]) for number, label in enumerate(labels)]), labels)}

    def class_names(self) -> tuple[str, ...]:
        return tuple(LETTERS)


def drawn(number: int, letter: str) -> np.ndarray:
    """Draw a letter, uint8 [3, SIDE, SIDE].

    Font, size, place and colours are functions of the number.
    """
    random = numpy_generator(Stream.LETTERS, number)
    middle = random.integers(0, 256, 3)
    background = _gradient(middle, random.integers(-GRADIENT, GRADIENT + 1, (2, 3)))
    ink = (middle + random.integers(CONTRAST, 257 - CONTRAST, 3)) % 256  # so no channel is near the middle
    mask = _placed(_glyph(FONTS[random.integers(len(FONTS))], int(random.integers(*SIZES)), letter), random)
    colours = background * (255 - mask) + ink[:, None, None] * mask
    return ((colours + 127) // 255).astype(np.uint8)


def _gradient(middle: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Return a background [3, SIDE, SIDE], which changes by `slopes` [2, 3] from its middle to its ends."""
    ends = 2 * np.arange(SIDE) - (SIDE - 1)  # from -31 to 31
    across, down = (slope[:, None] * ends // (SIDE - 1) // 2 for slope in slopes)
    return np.clip(middle[:, None, None] + across[:, None, :] + down[:, :, None], 0, 255)


def _placed(glyph: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Place a glyph somewhere in an empty image [SIDE, SIDE], all of it visible."""
    height, width = glyph.shape
    top, left = (int(random.integers(SIDE - side + 1)) for side in (height, width))
    image = np.zeros((SIDE, SIDE), np.int64)
    image[top : top + height, left : left + width] = glyph
    return image


@cache
def _glyph(name: str, size: int, letter: str) -> np.ndarray:
    """Return how much of each pixel a letter covers, uint8 [height, width]."""
    import matplotlib  # takes a moment to import: only when the cache is built

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    font = ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)  # the other one may not be installed
    left, top, right, bottom = map(int, font.getbbox(letter))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=font)
    return np.asarray(image)

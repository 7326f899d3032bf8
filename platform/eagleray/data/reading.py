"""Reads an image file as training does.

It needs Pillow alone, and imports it only when a file is read: the text of this file is in every loader that an encoder
is exported with, so that users of the encoder see the images that training saw.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 3  # largest ratio of the sides: of a panorama only the middle is stored, or it would pad its whole batch
ORIENTATION = 0x0112  # EXIF
TURNED = (5, 6, 7, 8)  # orientations that swap height and width
MOST_PIXELS = 50_000_000  # of an image that is decoded, for each of which up to 20 bytes are needed (WebP)
MOST_TRANSPARENT = 36_000_000  # of one with transparency: 27 bytes


def stored_image(image: "Image.Image", size: int, channels: int) -> "Image.Image":
    """Return an image as training stores it.

    It is upright, its shorter side reduced to at most `size`. Of 16 bits per channel the upper eight are kept;
    transparent areas become white.

    Raises:
        ValueError, OSError: it cannot be decoded, or not in a gigabyte of memory.
    """
    from PIL import Image, ImageOps

    shape = stored_shape(image.height, image.width, size)
    image.draft(None, (2 * size, 2 * size))  # decodes a far too large JPEG at 1/2, 1/4 or 1/8
    refuse_huge(image)
    upright = ImageOps.exif_transpose(image)
    height, width = shape[::-1] if image.getexif().get(ORIENTATION) in TURNED else shape
    opaque = _opaque(_eight_bits(upright)).convert("L" if channels == 1 else "RGB")
    return opaque.resize((width, height), Image.Resampling.BILINEAR, box=_middle(opaque.size))


def refuse_huge(image: "Image.Image") -> None:
    """Refuse an image that takes too much memory: a PNG of 20 KB can have 100 million pixels."""
    pixels, most = image.width * image.height, MOST_TRANSPARENT if image.has_transparency_data else MOST_PIXELS
    if pixels > most:
        raise ValueError(f"it has {pixels:,} pixels, and at most {most:,} are decoded; make it smaller")


def stored_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width of a stored image.

    They are as torchvision's Resize(size) gives them, but the image is never enlarged.
    """
    shorter, longer = sorted((height, width))
    side = min(shorter, size)
    other = min(longer * side // shorter, LONGEST * side)
    return (side, other) if height <= width else (other, side)


def evaluated_channels(image: "Image.Image", size: int) -> "list[Image.Image]":
    """Return the channels of a stored image as evaluation sees them.

    The shorter side is resized and the middle cut out: float32 images of `size` x `size`, from 0 to 255.
    """
    from PIL import Image

    resized = [side * size // min(image.size) for side in image.size]
    left, top = (round((side - size) / 2) for side in resized)
    middle = (left, top, left + size, top + size)
    bilinear = Image.Resampling.BILINEAR
    return [one.convert("F").resize((resized[0], resized[1]), bilinear).crop(middle) for one in image.split()]


def _middle(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the stored area: left, top, right and bottom.

    It is all of the image except the ends of a panorama.
    """
    left, top = (max(0, side - LONGEST * min(size)) / 2 for side in size)
    return left, top, size[0] - left, size[1] - top


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Keep the upper eight bits of a 16-bit grey image.

    Pillow's own conversion clips at 255.
    """
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits, whose range is unknown")
    if not image.mode.startswith("I;16"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")


def _opaque(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))

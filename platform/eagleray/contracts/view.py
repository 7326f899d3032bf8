"""What one view does to an image: a declaration, without torch and without randomness."""

import math
from dataclasses import dataclass
from typing import Any

from eagleray.contracts.errors import ConfigError

INFINITY = math.inf
MAGNITUDES = 30  # RandAugment's scale: 0 changes next to nothing, 30 the most


@dataclass(frozen=True)
class View:
    """One view of an image, as a method declares it; `make_view` performs it on a batch.

    The operations act in the order of SimCLR, whatever the order they are written in: crop, shift, flip, RandAugment,
    colour jitter, grayscale, blur, solarize, rotate, cutout. What is not declared is switched off.

    Raises:
        ConfigError: a value outside its range.
    """

    size: int | None = None  # side of the output in pixels; None: the run's image size
    crop: tuple[float, float] | None = None  # range of the area of a random crop, 1: all; None: the whole image
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height, drawn log-uniformly
    shift: float = 0.0  # random translation by up to this part of the side, borders reflected (FixMatch: 0.125)
    flip: float = 0.0  # probability of a horizontal flip
    jitter: float = 0.0  # strength of the colour jitter; multiplies jitter_scale
    jitter_scale: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.8  # share of the images that are jittered at all
    grayscale: float = 0.0  # probability of dropping the colour
    blur: float = 0.0  # probability of a Gaussian blur; its kernel is 10 % of the side, odd, at least 3
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # range of its standard deviation, in pixels of the output
    solarize: float = 0.0  # probability of inverting what is brighter than one half
    rotate: float = 0.0  # probability of a turn by 90, 180 or 270 degrees
    randaugment: tuple[int, int] | None = None  # how many operations, and their magnitude from 0 to 30
    cutout: float = 0.0  # side of the square that is cut out, as a part of the image's side; 0: none

    def __post_init__(self):
        for name in ("flip", "jitter_probability", "grayscale", "blur", "solarize", "rotate", "shift", "cutout"):
            _within(name, getattr(self, name), 0, 1)
        _within("jitter", self.jitter, 0, INFINITY)
        for scale in _several("jitter_scale", self.jitter_scale, 4):
            _within("jitter_scale", scale, 0, INFINITY)
        _within("jitter times the hue of jitter_scale", self.jitter * self.jitter_scale[3], 0, 0.5)
        for name, most in (("crop", 1), ("crop_ratio", INFINITY), ("blur_sigma", INFINITY)):
            if getattr(self, name) is not None:
                _ordered(name, getattr(self, name), most)
        if self.size is not None:
            _whole("size", self.size, 1, INFINITY)
        if self.randaugment is not None:
            operations, magnitude = _several("randaugment", self.randaugment, 2)
            _whole("the operations of randaugment", operations, 1, INFINITY)
            _whole("the magnitude of randaugment", magnitude, 0, MAGNITUDES)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # said so that NaN is refused too
        span = f"{low} or more" if high == INFINITY else f"from {low} to {high}"
        raise ConfigError(f"view: {name} goes {span}, it cannot be {value}")


def _whole(name: str, value: int, low: int, high: float) -> None:
    if not isinstance(value, int):
        raise ConfigError(f"view: {name} must be a whole number, not {value!r}")
    _within(name, value, low, high)


def _several(name: str, values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(values) != count:
        raise ConfigError(f"view: {name} takes {count} numbers, not {values!r}")
    return values


def _ordered(name: str, span: tuple[float, float], most: float) -> None:
    low, high = _several(name, span, 2)
    if not 0 < low <= high <= most:
        top = "" if most == INFINITY else f" up to {most}"
        raise ConfigError(f"view: {name} takes two numbers above 0{top}, the lower one first, not {span!r}")

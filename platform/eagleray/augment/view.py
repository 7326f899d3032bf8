"""What one view does to an image: a declaration, without torch and without randomness."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from eagleray.errors import Refusal

MAGNITUDES = 30  # RandAugment's scale: 0 changes next to nothing, 30 the most


@dataclass(frozen=True)
class View:
    """One view of an image, as a method declares it; `make_view` performs it on a batch.

    The operations act in the order of SimCLR, whatever the order they are written in: crop, shift, flip, RandAugment,
    colour jitter, grayscale, blur, solarize, rotate, cutout. What is not declared is switched off.

    Raises:
        Refusal: a value outside its range.
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
        if self.size is not None:
            self._check("size", [self.size], 1)
        for name in ("flip", "jitter_probability", "grayscale", "blur", "solarize", "rotate"):
            self._check(name, [getattr(self, name)], 0, 1)
        for name in ("shift", "cutout"):
            self._check(name, [getattr(self, name)], 0, 1)
        self._check("jitter", [self.jitter], 0)
        self._check("jitter_scale", self.jitter_scale, 0, length=4)
        self._check("jitter * jitter_scale's hue", [self.jitter * self.jitter_scale[3]], 0, 0.5)
        self._check_span("crop", self.crop or (1.0, 1.0), 1)
        self._check_span("crop_ratio", self.crop_ratio)
        self._check_span("blur_sigma", self.blur_sigma)
        if self.randaugment is not None:
            self._check("randaugment", self.randaugment, 0, length=2)
            self._check("randaugment's magnitude", self.randaugment[1:], 0, MAGNITUDES)

    def _check(self, name: str, values: Iterable[Any], low: float, high: float | None = None, length: int = 1):
        if len(tuple(values)) != length:
            raise Refusal(f"view: {name} takes {length} numbers, not {values!r}")
        for value in values:
            if not low <= value <= (value if high is None else high):
                span = f"at least {low}" if high is None else f"between {low} and {high}"
                raise Refusal(f"view: {name} must be {span}, not {value}")

    def _check_span(self, name: str, span: tuple[float, float], high: float = float("inf")):
        if len(span) != 2 or not 0 < span[0] <= span[1] <= high:
            top = "" if high == float("inf") else f" and at most {high}"
            raise Refusal(f"view: {name} must be two numbers above 0{top}, the lower first, not {span!r}")

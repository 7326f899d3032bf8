"""The declaration of a view. Imports no torch.

It says what a view does to an image, without randomness. `View` is the one definition of the operations. The `augment`
section of a run file, the names that `augment.only` accepts and the way a run's settings override a method's views all
follow from its fields.
"""

import math
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import Choice, Uniform

MAGNITUDES = 30  # RandAugment's scale: 0 changes almost nothing, 30 the most

_OPERATION = object()  # marks a field that switches an operation on; its default switches the operation off
_PART = Field(ge=0, le=1)
_PROBABILITY = Annotated[float, _OPERATION, Uniform(0.0, 1.0), _PART]


@dataclass(frozen=True)
class View:
    """One view of an image, declared by a method.

    `make_view` performs it on a batch. The operations always act in SimCLR's order: crop, shift, flip, RandAugment,
    colour jitter, grayscale, blur, solarize, rotate, cutout. Operations that are not declared are switched off. A field
    with a description can also be set for all views of a run, in its `augment` section.

    Raises:
        ConfigError: a value outside its range.
    """

    size: int | None = None  # side of the output in pixels; None: the run's image size
    crop: Annotated[tuple[float, float] | None, _OPERATION] = None  # range of the area of a random crop, 1: all
    crop_min: InitVar[  # the lower end alone: the upper end of `crop` stays
        Annotated[float | None, Uniform(0.05, 1.0), Field(gt=0, le=1, description="smallest area of a random crop")]
    ] = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height, drawn log-uniformly
    interpolation: Annotated[
        Literal["bilinear", "bicubic"],
        Choice("bilinear", "bicubic"),
        Field(description="how crops are resized, always with antialiasing"),
    ] = "bilinear"
    shift: Annotated[float, _OPERATION, _PART] = 0.0  # random translation by up to this part of the side
    shift_border: Literal["reflect", "black"] = "reflect"  # what fills the gap (FixMatch reflects, RotNet pads)
    flip: Annotated[_PROBABILITY, Field(description="probability of a horizontal flip")] = 0.0
    jitter: Annotated[
        float, _OPERATION, Uniform(0.0, 1.0), Field(ge=0, le=2, description="strength of the colour jitter")
    ] = 0.0  # multiplies jitter_scale
    jitter_scale: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)  # brightness, contrast, saturation, hue
    jitter_probability: Annotated[float, _PART] = 0.8  # share of the images that are jittered at all
    grayscale: Annotated[_PROBABILITY, Field(description="probability of dropping the colour")] = 0.0
    blur: Annotated[_PROBABILITY, Field(description="probability of a Gaussian blur")] = 0.0  # kernel: 10 % of the side
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # range of its standard deviation, in pixels of the output
    solarize: Annotated[_PROBABILITY, Field(description="probability of solarizing")] = 0.0
    rotate: Annotated[_PROBABILITY, Field(description="probability of a right-angle rotation")] = 0.0
    randaugment: Annotated[tuple[int, int] | None, _OPERATION] = None  # how many operations; magnitude, 0 to 30
    cutout: Annotated[
        float,
        _OPERATION,
        Uniform(0.0, 0.5),
        Field(ge=0, le=1, description="side of the square cut out, as a part of the image's side"),
    ] = 0.0

    def __post_init__(self, crop_min: float | None):
        if crop_min is not None:
            largest = self.crop[1] if self.crop else 1.0
            object.__setattr__(self, "crop", (min(crop_min, largest), largest))
        for name, (low, high) in _LIMITS.items():
            _within(name, getattr(self, name), low, high)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"view: {name} is {' or '.join(choices)}, not {getattr(self, name)!r}")
        for scale in _several("jitter_scale", self.jitter_scale, 4):
            _within("jitter_scale", scale, 0, math.inf)
        _within("jitter times the hue of jitter_scale", self.jitter * self.jitter_scale[3], 0, 0.5)
        for name, most in (("crop", 1), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            if getattr(self, name) is not None:
                _ordered(name, getattr(self, name), most)
        if self.size is not None:
            _whole("size", self.size, 1, math.inf)
        if self.randaugment is not None:
            operations, magnitude = _several("randaugment", self.randaugment, 2)
            _whole("the operations of randaugment", operations, 1, math.inf)
            _whole("the magnitude of randaugment", magnitude, 0, MAGNITUDES)

    @property
    def words(self) -> str:
        """The operations that are switched on, with probabilities and strengths."""
        return ", ".join(self._words(name) for name, off in OPERATIONS.items() if getattr(self, name) != off)

    def _words(self, name: str) -> str:
        others = [field.name for field in fields(self) if field.name.startswith(f"{name}_")]
        details = [f"{other.removeprefix(f'{name}_')} {_text(getattr(self, other))}" for other in others]
        value = f"in {getattr(self, name):.0%}" if name in _PROBABILITIES else _text(getattr(self, name))
        return f"{name} {value}" + (f" ({', '.join(details)})" if details else "")


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        is_range = len(value) == 2 and isinstance(value[0], float)
        return (" to " if is_range else " ").join(map(_text, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _declared() -> Iterator[tuple[str, Any, list[Any]]]:
    """Yield each field's name, its type and its annotations."""
    for name, hint in View.__annotations__.items():
        hint = hint.type if isinstance(hint, InitVar) else hint
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        yield name, kind, notes


def _ends(notes: list[Any]) -> tuple[float, float] | None:
    """Return a field's lowest and highest value, if any."""
    limits = [limit for note in notes if isinstance(note, FieldInfo) for limit in note.metadata]
    ends = {key: getattr(limit, key) for limit in limits for key in ("ge", "le") if hasattr(limit, key)}
    return (ends["ge"], ends["le"]) if len(ends) == 2 else None


# Each operation, and the value that switches it off.
OPERATIONS: dict[str, Any] = {name: getattr(View, name) for name, _, notes in _declared() if _OPERATION in notes}
# The settings of a run for all its views, as types for pydantic with range, limits and description; None: not set.
SETTINGS: dict[str, Any] = {
    name: Annotated[kind | None, *(note for note in notes if note is not _OPERATION)]
    for name, kind, notes in _declared()
    if any(getattr(note, "description", None) for note in notes)
}
_PROBABILITIES = {name for name, kind in SETTINGS.items() if "probability" in str(get_args(kind)[1:])}
_LIMITS = {name: ends for name, _, notes in _declared() if (ends := _ends(notes))}
_CHOICES = {name: get_args(kind) for name, kind, _ in _declared() if get_origin(kind) is Literal}


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # written so that NaN is an error too
        span = f"{low} or more" if high == math.inf else f"from {low} to {high}"
        raise ConfigError(f"view: {name} must be {span}, not {value}")


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
        top = "" if most == math.inf else f" up to {most}"
        raise ConfigError(f"view: {name} takes two numbers above 0{top}, the lower one first, not {span!r}")

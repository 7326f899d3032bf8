"""The ranges a hyperparameter declares beside its default; knows neither Ray nor torch.

    temperature: Annotated[float, LogUniform(0.05, 1.0), Field(gt=0, description="…")] = 0.2
"""

from dataclasses import dataclass
from typing import Any

from eagleray.errors import Refusal


@dataclass(frozen=True)
class Uniform:
    """Any number between two ends."""

    low: float
    high: float

    def __post_init__(self):
        _ordered(self)


@dataclass(frozen=True)
class LogUniform:
    """Any number between two positive ends, each factor of ten as likely as another."""

    low: float
    high: float

    def __post_init__(self):
        _ordered(self)
        if self.low <= 0:
            raise Refusal(f"log_uniform needs a positive lower end, not {self.low}")


@dataclass(frozen=True)
class IntRange:
    """Any whole number between two ends, both included."""

    low: int
    high: int

    def __post_init__(self):
        _ordered(self)


@dataclass(frozen=True)
class Choice:
    """One of the values listed."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any):
        if not values:
            raise Refusal("a choice needs at least one value")
        object.__setattr__(self, "values", values)


Range = Uniform | LogUniform | IntRange | Choice


def _ordered(span: Any) -> None:
    if not span.low < span.high:
        raise Refusal(f"a range goes from a lower to a higher number, not from {span.low} to {span.high}")

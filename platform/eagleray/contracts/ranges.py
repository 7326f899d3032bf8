"""Ranges of hyperparameters, declared next to their defaults.

This file imports neither Ray nor torch.

temperature: Annotated[float, LogUniform(0.05, 1.0), Field(gt=0, description="…")] = 0.2
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eagleray.contracts.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Uniform:
    """Any number between two ends."""

    low: float
    high: float

    def __post_init__(self):
        _ordered(self)


@dataclass(frozen=True)
class LogUniform:
    """Any positive number, each factor of ten equally likely."""

    low: float
    high: float

    def __post_init__(self):
        _ordered(self)
        if self.low <= 0:
            raise ConfigError(f"log_uniform needs a positive lower end, not {self.low}")


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
            raise ConfigError("a choice needs at least one value")
        object.__setattr__(self, "values", values)


Range = Uniform | LogUniform | IntRange | Choice


def sample(span: Range, rng: "np.random.Generator") -> Any:
    """Draw one value of a range.

    It is a Python number, or one of the listed values.
    """
    if isinstance(span, Choice):
        return span.values[int(rng.integers(len(span.values)))]
    if isinstance(span, IntRange):
        return int(rng.integers(span.low, span.high, endpoint=True))
    if isinstance(span, LogUniform):
        return rounded(math.exp(rng.uniform(math.log(span.low), math.log(span.high))), span)
    return rounded(float(rng.uniform(span.low, span.high)), span)


def rounded(value: float, span: Uniform | LogUniform) -> float:
    """Round to four digits without leaving the range.

    A table can show four digits in full.
    """
    return min(max(float(f"{value:.4g}"), span.low), span.high)


KINDS = {"uniform": Uniform, "log_uniform": LogUniform, "int": IntRange}


def read_range(value: Any) -> Range:
    """Read a range of a sweep file.

    `[0.1, 0.2]`, `{log_uniform: [0.05, 1]}`, `{uniform: …}` or `{int: …}`.

    Raises:
        ConfigError: the value has none of these forms, or its ends are not numbers.
    """
    if isinstance(value, list | tuple) and value:
        return Choice(*value)
    if not isinstance(value, Mapping) or not is_range(value):
        raise ConfigError("write a list of values, {uniform|log_uniform|int: [low, high]} or `declared`")
    kind, ends = next(iter(value.items()))
    number = int if kind == "int" else float
    try:
        low, high = (number(end) for end in ends)  # YAML reads 1e-3 as a string
    except (TypeError, ValueError):
        raise ConfigError(f"{kind} takes two numbers, [low, high], not {ends}") from None
    if kind == "int" and [low, high] != list(ends):
        raise ConfigError(f"int takes two whole numbers, [low, high], not {ends}")
    return KINDS[kind](low, high)


def is_range(value: Any) -> bool:
    """Return whether a mapping names a kind of range."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in KINDS


def probes(span: Range) -> list[Any]:
    """Return values that test a range.

    All of a choice, else both ends and one between.
    """
    if isinstance(span, Choice):
        return list(span.values)
    between = span.low + 1 if isinstance(span, IntRange) else span.low + (span.high - span.low) / 3
    return [span.low, between, span.high]


def _ordered(span: Any) -> None:
    if not span.low < span.high:
        raise ConfigError(f"a range goes from a lower to a higher number, not from {span.low} to {span.high}")

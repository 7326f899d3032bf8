"""Numbers and params as people read them."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from eagleray.report.means import margin


def number(value: float) -> str:
    """Return a number as text with three decimals.

    Very small and large ones have three digits.
    """
    if 999.5 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Return the mean as text, ± the margin of its t interval.

    One value has no interval; without a value the text is a dash.
    """
    return with_margin(fmean(values), margin(values)) if values else "–"


def with_margin(mean: float, half: float | None) -> str:
    return number(mean) if half is None else f"{number(mean)} ± {number(half)}"


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{3 if p_value < 0.1 else 2}f}"


def param_text(value: Any, digits: int = 4) -> str:
    """Return a param as text for tables.

    Params are as `config.search_points.as_param` gives them: floats are shortened, None is `default`.
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "default"}[value]
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def distinct_texts(values: Iterable[Any]) -> dict[Any, str]:
    """Write each of some values as `param_text` does, with more digits where two would look alike."""
    known, texts = list(values), dict[Any, str]()
    for digits in (4, 6, 8, 17):
        texts = {value: param_text(value, digits) for value in known}
        if len({*texts.values()}) == len(texts):
            break
    return texts

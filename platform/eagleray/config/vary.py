"""The ranges of what a sweep varies."""

from collections.abc import Iterator, Mapping
from typing import Any

from eagleray.config.mistakes import nearest, wrong
from eagleray.config.nested import CHOSEN
from eagleray.config.run import run_keys
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import KINDS, Range, probes, read_range


def range_of(key: str, value: Any, run: Mapping[str, Any]) -> Range:
    """Read the range of a varied key.

    Args:
        key: dotted, of the run.
        value: a list, a range, or `declared`.
        run: the settings that do not vary; they decide which method declares the range.

    Raises:
        PydanticCustomError: the value is none of these.
    """
    if value == "declared":
        return _declared(key, run)
    _check_kind(key, run)
    try:
        span = read_range(value)
    except ConfigError as error:
        raise wrong(f"vary.{key}: {error}") from None
    if key == "run" and not all(isinstance(each, Mapping) for each in probes(span)):
        raise wrong("vary.run takes variants of the run, each a mapping: [{method: simclr}, {method: byol}]")
    return span


def each_value(ranges: Mapping[str, Range]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key with each of its values, the other keys at their first.

    Of a range, these are its ends and one value between.
    """
    spans = {key: probes(span) for key, span in ranges.items()}
    first = {key: values[0] for key, values in spans.items()}
    for key, values in spans.items():
        yield from ((key, {**first, key: value}) for value in values)


def _check_kind(key: str, run: Mapping[str, Any]) -> None:
    """Refuse a misspelt kind of range, which looks like a key below a single value."""
    (above, _, last), known = key.rpartition("."), run_keys(run)
    if above in known and above not in CHOSEN and not any(name.startswith(f"{above}.") for name in known):
        raise wrong(f"vary.{above}: a range is one of {', '.join(KINDS)}, not {last}{nearest(last, KINDS)}")


def _declared(key: str, run: Mapping[str, Any]) -> Range:
    known = run_keys(run)
    marks = known[key].metadata if key in known else ()
    span = next((mark for mark in marks if isinstance(mark, Range)), None)
    if span is None:
        raise wrong(f"vary.{key}: it declares no range; write one, such as {{uniform: [0, 1]}} or [1, 2]")
    return span

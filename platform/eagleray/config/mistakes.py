"""Pydantic's errors as sentences with a remedy."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from eagleray.contracts.errors import ConfigError

_TYPES = {
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing", "finite_number"),
    "true or false": ("bool_type", "bool_parsing"),
    "text": ("string_type",),
    "a list": ("tuple_type", "list_type"),
    "a path": ("path_type",),
    "a size, such as 4 GiB": ("byte_size", "byte_size_unit"),
    "a section of keys": ("model_type", "model_attributes_type", "dict_type"),
}
_WANTED = {kind: words for words, kinds in _TYPES.items() for kind in kinds}
_BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "multiple_of": "a multiple of {}"}
_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of")


def wrong(message: str) -> PydanticCustomError:
    """Return a validator's error, to be shown unchanged."""
    return PydanticCustomError("wrong", "{message}", {"message": message})


def every_mistake(check: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[str]:
    """Check each value; yield the sentences of those refused."""
    for value in values:
        try:
            check(value)
        except PydanticCustomError as error:
            yield error.message()
        except ConfigError as error:
            yield str(error)


def refuse(sentences: Iterable[str]) -> None:
    """Raise a validator's error of several sentences, if any."""
    if lines := dict.fromkeys(line for sentence in sentences for line in sentence.splitlines()):
        raise wrong("\n".join(lines))


def nested(errors: Iterable[Any], name: str, owners: Mapping[str, list[str]]) -> PydanticCustomError:
    """Return the errors of a section as one.

    Its keys depend on its name.

    Args:
        errors: pydantic's errors for the section's own settings.
        name: the name whose settings they are.
        owners: unknown key -> other names that have it, first those that need it.
    """
    return PydanticCustomError("nested", "", {"errors": list(errors), "name": name, "owners": dict(owners)})


def sentences(errors: Iterable[Any], known: Mapping[str, FieldInfo], above: str = "") -> Iterator[str]:
    """Yield one sentence for each mistake.

    Args:
        errors: of a ValidationError.
        known: all dotted keys, with their fields.
        above: the section the errors are in.
    """
    several: dict[str, Any] = {}  # the errors that tell why a value is of none of several types
    for error in errors:
        path = [*filter(None, [above]), *(part for part in error["loc"] if isinstance(part, str))]
        context = error.get("ctx", {})
        if (key := ".".join(path[:-1])) in known and _is_of_several(known[key]):
            if key not in several or error["type"] == "value_error":  # what a validator says is the most exact
                several[key] = error
            continue
        if error["type"] != "nested":
            yield _sentence(error, ".".join(path), known)
            continue
        others = list[Any]()
        for inner in context["errors"]:
            unknown = str(inner["loc"][-1]) if inner["type"] == "extra_forbidden" else ""
            if path != ["beside"] and (owners := context["owners"].get(unknown)):
                have = f"{_listed(owners)} {'have' if len(owners) > 1 else 'has'}"
                key, section = ".".join([*path, unknown]), ".".join(path)
                remedy = f"for example {section}={owners[0]} {key}={_shown(inner['input'])}"
                yield f"unknown key {key}: {context['name']} has no such setting, {have}; {remedy}"
            else:
                others.append(inner)
        yield from sentences(others, known, ".".join(path))
    yield from (_sentence(error, key, known) for key, error in several.items())


def booleans(leaves: Iterable[tuple[str, Any]], known: Mapping[str, FieldInfo]) -> Iterator[str]:
    """Yield a sentence for each boolean used as number.

    pydantic would read `true` as 1 and `false` as 0.
    """
    for key, value in leaves:
        field = known.get(key)
        if isinstance(value, bool) and field is not None and {int, float} & set(_kinds(field)):
            yield f"{key}={_shown(value)} is not a number{_allowed(field)}"


def unending(leaves: Iterable[tuple[str, Any]], known: Mapping[str, FieldInfo]) -> Iterator[str]:
    """Yield a sentence for each number that is infinite, or no number.

    A plugin's Config would accept it.
    """
    for key, value in leaves:
        field = known.get(key)
        if field is not None and float in _kinds(field) and not _is_finite(value):
            yield f"{key}={_shown(value)} is not a finite number{_allowed(field)}"


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean …?`, or nothing."""
    near = difflib.get_close_matches(word, list(words), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _sentence(error: Any, key: str, known: Mapping[str, FieldInfo]) -> str:
    kind, context, setting = error["type"], error.get("ctx", {}), f"{key}={_shown(error['input'])}"
    field = known.get(key)
    if kind == "wrong":
        return context["message"]
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    if kind == "extra_forbidden":
        return f"unknown key {key}{_near_key(key, known)}"
    if kind == "missing":
        return f"{key} is missing" + (f" ({field.description})" if field and field.description else "")
    if kind == "literal_error":
        words = _literals(context["expected"])
        return f"{setting} is not one of {', '.join(words)}{nearest(str(error['input']), words)}"
    if kind == "too_short":
        return f"{key} is empty; name at least one"
    if kind in _WANTED:
        return f"{setting} is not {_WANTED[kind]}{_allowed(field)}{_written(kind, key, known)}"
    if kind in _OUT_OF_RANGE and _allowed(field):
        return f"{setting} is out of range{_allowed(field)}"
    message = error["msg"].replace("Input should be", "must be")
    return f"{setting}: {message[:1].lower()}{message[1:]}"


def _near_key(key: str, known: Mapping[str, FieldInfo]) -> str:
    """Suggest a similar key.

    One of the same section, or of that name elsewhere; without a section, any similar one.
    """
    section, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    near = [siblings[name] for name in difflib.get_close_matches(last, siblings, 1, 0.6)]
    deepest_first = sorted(known, key=lambda name: -name.count("."))  # of equal names the last one is used
    elsewhere = {name.rpartition(".")[2]: name for name in deepest_first}
    near = near or [elsewhere[name] for name in difflib.get_close_matches(last, elsewhere, 1, 1.0 if section else 0.7)]
    if near:
        return f"; did you mean {near[0]}?"
    return f" (known: {', '.join(siblings.values())})" if siblings else f"; {section} has no keys"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):  # null, or one of several kinds of values
        return True


def _is_of_several(field: FieldInfo) -> bool:
    """Return whether a value may be of one of several types."""
    types = [each for each in get_args(field.annotation) if each is not type(None)]
    return get_origin(field.annotation) in (Union, UnionType) and len(types) > 1


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    return (field.annotation, *get_args(field.annotation))


def _allowed(field: FieldInfo | None) -> str:
    """Describe the whole allowed range.

    pydantic names only the limit that was exceeded.
    """
    ends = {
        name: f"{getattr(mark, name):g}"
        for name in _BOUNDS
        for mark in (field.metadata if field is not None else ())
        if getattr(mark, name, None) is not None
    }
    span = f"{ends.pop('ge')} to {ends.pop('le')}" if {"ge", "le"} <= set(ends) else None
    bounds = [*filter(None, [span]), *(_BOUNDS[name].format(end) for name, end in ends.items())]
    return f" (allowed: {' and '.join(bounds)})" if bounds else ""


def _written(kind: str, key: str, known: Mapping[str, FieldInfo]) -> str:
    """Tell how a list or a section is written."""
    if _WANTED[kind] == "a list":
        return "; lists are written [a, b], an empty one []"
    below = [name for name in known if name.startswith(f"{key}.")]
    return f"; its keys are {', '.join(below)}" if _WANTED[kind] == "a section of keys" and below else ""


def _literals(expected: str) -> list[str]:
    return [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]


def _shown(value: Any) -> str:
    """Format a value as in a file."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    text = "null" if value is None else text
    return text if len(text) <= 60 else f"{text[:57]}…"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

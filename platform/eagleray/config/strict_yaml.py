"""YAML of settings: small, every key once, and no number that is another than it looks.

A file may come from anywhere, and a few lines can stand for billions of values; so its size is known before it is read.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from eagleray.contracts.errors import ConfigError

LONGEST = 200_000  # characters of a file
MOST = 10_000  # values, those that aliases repeat included
DEEPEST = 50  # sections in sections
DIGITS = 40  # of a number
LETTERS = 4096  # of a text; a path cannot have more
MERGE = "tag:yaml.org,2002:merge"  # `<<: *anchor`, whose keys may be overridden
CLOCKS = ("until",)  # keys whose value may be 18:00
OCTAL = re.compile(r"[-+]?0[0-7_]+")


def read_yaml(text: str, where: str, above: str = "") -> tuple[Any, dict[str, str]]:
    """Return what a text says, and the place of each dotted key: `run.yaml:3:1`.

    Args:
        text: the YAML.
        where: the name of the file, or the key whose value the text is.
        above: the key whose value the text is, if it is no file.

    Raises:
        yaml.YAMLError, ValueError: the text is not YAML.
        ConfigError: it is too large, a key is written twice, a section contains itself, a number is misleading, or a
            text is not Unicode.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"{where}: {len(text):,} characters are more than settings have (at most {LONGEST:,})")
    _check_size(text, where)
    found: dict[str, str] = {}
    for key, place in _places(yaml.compose(text, Loader=yaml.SafeLoader), above, where):
        if key in found:
            raise ConfigError(f"{place}: {key} is written twice, first at {found[key]}; remove one of them")
        found[key] = place
    return yaml.safe_load(text), found


def _check_size(text: str, where: str) -> None:
    """Refuse a text with too many values or sections, without making any of them."""
    known: dict[str, tuple[int, int]] = {}  # anchor -> values and depth of what it stands for
    opened: list[tuple[str | None, int, int]] = [(None, 0, 0)]  # of each section that is not complete
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1, 1))
            complete = None
        elif isinstance(event, yaml.CollectionEndEvent):
            complete = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            complete = (event.anchor, 1, 1)
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _, _ in opened):
                raise ConfigError(f"{_at(event, where)}: *{event.anchor} contains itself; write its keys out")
            complete = (None, *known.get(event.anchor, (1, 1)))
        else:
            continue
        if complete is not None:
            (anchor, values, depth), (outer, more, below) = complete, opened.pop()
            if anchor is not None:
                known[anchor] = (values, depth)
            opened.append((outer, more + values, max(below, depth + 1)))
        _, values, depth = opened[-1]
        if values > MOST:
            raise ConfigError(f"{_at(event, where)}: these settings have more than {MOST:,} values; write fewer")
        if len(opened) > DEEPEST or depth > DEEPEST:
            raise ConfigError(f"{_at(event, where)}: more than {DEEPEST} sections are inside each other; write fewer")


def _places(node: yaml.Node, above: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield each dotted key and its place; refuse values that mislead."""
    if isinstance(node, yaml.ScalarNode):
        if reason := _misleading(node, above):
            raise ConfigError(f"{_at(node, where)}: {above} {reason}")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _places(item, f"{above}[{number}]", where)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != MERGE:
                name = f"{above}.{key.value}" if above else str(key.value)
                yield name, _at(key, where)
                yield from _places(value, name, where)


def _misleading(node: yaml.ScalarNode, key: str) -> str | None:
    """Return why a value is not what it looks like, and how it is written."""
    text = node.value
    if len(text) > LETTERS:
        return f"has {len(text):,} characters, and {LETTERS:,} are enough for any setting; write it shorter"
    if "\0" in text:
        return "has a zero byte, which no name and no path can have; remove it"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "has half a character, which no text may have; correct it"
    if not node.tag.endswith((":int", ":float")):
        return None
    if len(text) > DIGITS:
        return f"is a number of {len(text):,} characters, and {DIGITS} are enough for any; write it shorter"
    is_clock, is_octal = ":" in text and key.rpartition(".")[2] not in CLOCKS, bool(OCTAL.fullmatch(text))
    if not is_clock and not is_octal:
        return None
    number, looks = yaml.safe_load(text), int(text.replace("_", "")) if is_octal else None
    if number == looks:
        return None
    either = f"{looks} or {number}" if is_octal else str(number)
    return f"is written {text}, which YAML reads as {number}; write {either}, or '{text}' if it is text"


def _at(node: yaml.Node | yaml.Event, where: str) -> str:
    return f"{where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

"""Where in a file a key is written, so that a mistake names its line."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from eagleray.contracts.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"  # `<<: *anchor`, whose keys may be overridden


def key_places(file: Path, text: str) -> dict[str, str]:
    """Return the place of each dotted key: `run.yaml:3:1`.

    Raises:
        yaml.YAMLError: the text is not YAML.
        ConfigError: a key is written twice, a section contains itself, or a text is not Unicode.
    """
    found: dict[str, str] = {}
    for key, place in _places(yaml.compose(text, Loader=yaml.SafeLoader), "", file, ()):
        if key in found:
            raise ConfigError(f"{place}: {key} is written twice, first at {found[key]}; remove one of them")
        found[key] = place
    return found


@contextmanager
def placed(file: Path | None, overrides: Iterable[str] = ()) -> Iterator[None]:
    """Add the place in the file to each mistake of the block.

    A sentence begins with the key that it is about. Keys that the overrides (`key=value`) change are not in the file.
    """
    try:
        yield
    except ConfigError as error:
        places, typed = _readable(file) if file else {}, [_plain(text.partition("=")[0].strip()) for text in overrides]
        for key in typed:
            places = {name: place for name, place in places.items() if not _is_below(_plain(name), key)}
        lines = (_with_place(line, places, file, typed) for line in str(error).splitlines())
        raise ConfigError("\n".join(lines)) from None


def _places(node: yaml.Node, above: str, file: Path, inside: tuple[yaml.Node, ...]) -> Iterator[tuple[str, str]]:
    if node in inside:
        raise ConfigError(f"{file}: {above} contains itself; write its keys out")
    if isinstance(node, yaml.ScalarNode) and not _is_unicode(node.value):
        raise ConfigError(f"{_place(node, file)}: {above} has half a character, which no text may have; correct it")
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _places(item, f"{above}[{number}]", file, (*inside, node))
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag != MERGE:
            name = f"{above}.{key.value}" if above else str(key.value)
            yield name, _place(key, file)
            yield from _places(value, name, file, (*inside, node))


def _place(node: yaml.Node, file: Path) -> str:
    return f"{file}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _is_unicode(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _readable(file: Path) -> dict[str, str]:
    try:
        return key_places(file, file.read_text(encoding="utf-8"))
    except (ConfigError, yaml.YAMLError, UnicodeDecodeError, OSError):
        return {}  # the mistake is that the file cannot be read, and says so


def _plain(key: str) -> str:
    """Return a key of a sweep's run or of what it varies as that of a run."""
    return re.sub(r"^(vary|run)\.", "", key)


def _is_below(name: str, key: str) -> bool:
    return f"{name}.".startswith(f"{key}.")


def _with_place(sentence: str, places: dict[str, str], file: Path | None, typed: list[str]) -> str:
    start = re.match(r"(?:unknown key )?([\w.]+)( is missing)?", sentence)
    key = start[1].rstrip(".") if start else ""
    if any(_is_below(_plain(key), each) for each in typed):
        return sentence
    while key:
        heres = [f"{prefix}{key}" for prefix in ("", "vary.", "run.")]  # a sweep's own, a varied one, one of its run
        below = (name for here in heres for name in places if name.startswith(f"{here}."))
        if name := next((here for here in heres if here in places), next(below, None)):
            return f"{places[name]}: {sentence}"
        key = key.rpartition(".")[0]
    return f"{file}: {sentence}" if file and start and start[2] else sentence

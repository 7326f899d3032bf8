"""Where in a file a key is written, so that a mistake names its line."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from eagleray.config.strict_yaml import read_yaml
from eagleray.contracts.errors import ConfigError


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


def _readable(file: Path) -> dict[str, str]:
    try:
        return read_yaml(file.read_text(encoding="utf-8"), str(file))[1]
    except (ConfigError, yaml.YAMLError, ValueError, OSError):
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

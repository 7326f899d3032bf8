"""Run and sweep files as nested dictionaries.

Reading, overriding, merging; validation comes later.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from eagleray.config.strict_yaml import DEEPEST, LONGEST, read_yaml
from eagleray.config.told import is_command
from eagleray.contracts.errors import ConfigError

TAB = r"character '\t'"  # in PyYAML's words
CHOSEN = ("method", "encoder", "data")  # sections whose name decides which other keys they have


def read_tree(file: Path) -> dict[str, Any]:
    """Read a YAML file as a tree.

    An empty file is an empty tree.

    Raises:
        ConfigError: the file does not exist, is not YAML, is not a mapping, has a key twice or a command to run.
    """
    if not os.path.isfile(file):
        raise ConfigError(
            f"{file} is a folder; name a file in it" if os.path.isdir(file) else f"there is no file {file}"
        )
    try:
        if file.stat().st_size > 4 * LONGEST:
            raise ConfigError(f"{file} is larger than a file of settings can be ({LONGEST:,} characters)")
        tree, _ = read_yaml(file.read_text(encoding="utf-8"), str(file))
    except ConfigError:
        raise
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not text in UTF-8: save it as UTF-8, or name another file") from None
    except (yaml.YAMLError, ValueError) as error:  # such as the date 2030-13-01
        raise ConfigError(f"{file} is not YAML: {_place(error)}") from None
    if not isinstance(tree, dict | None) or not all(isinstance(key, str) for key in tree or {}):
        raise ConfigError(f"{file} has no settings: a run or sweep file maps keys to values, such as `epochs: 10`")
    if is_command((tree or {}).get("notify")):
        raise ConfigError(
            "notify is a command, which a file from elsewhere must not run: type it, notify='COMMAND'; a file may have "
            "an http(s) address"
        )
    return merged(tree or {})


def parse_override(text: str) -> dict[str, Any]:
    """Parse `method.temperature=0.1` into a tree.

    The value is read as YAML.

    Raises:
        ConfigError: the text is not `key=value`, or has no value.
    """
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"{text!r} is not a setting; write key=value, for example method.temperature=0.1")
    if key.count(".") >= DEEPEST:
        raise ConfigError(f"{key}: more than {DEEPEST} sections are inside each other; `eagleray schema` lists all")
    if not value.strip():
        raise ConfigError(f"{text} has no value; write one, without spaces around the =, or leave the setting out")
    try:
        return branch(key, read_yaml(value, key, key)[0])
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{key}: {value!r} is not YAML: {_place(error)}") from None


def branch(key: str, value: Any) -> dict[str, Any]:
    """Return a tree with one leaf.

    `a.b`, 1 -> {a: {b: 1}}.
    """
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Merge trees; later ones override earlier ones.

    `method: x` is short for `method: {name: x}`. A new name drops the settings of the previous name, which belong only
    to that one.
    """
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            value = {"name": value} if key in CHOSEN and isinstance(value, str) else value
            below = result.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                value = merged(value) if key in CHOSEN and _renamed(below, value) else merged(below, value)
            elif isinstance(value, Mapping):
                value = merged(value)
            result[key] = value
    return result


def _renamed(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    return "name" in below and "name" in above and below["name"] != above["name"]


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    what = str(getattr(error, "problem", None) or error).partition("\n")[0]
    return f"a tab{where}; write spaces instead" if TAB in what else f"{what}{where}"

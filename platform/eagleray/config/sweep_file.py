"""Sweep files: reading them, with overrides."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eagleray.config.mistakes import nearest
from eagleray.config.nested import merged, parse_override, read_tree
from eagleray.config.places import placed
from eagleray.config.run import Run, validated
from eagleray.config.sweep import Sweep
from eagleray.contracts.errors import ConfigError


def load_sweep(file: Path, overrides: list[str]) -> Sweep:
    """Read a sweep from a file and overrides.

    Overrides change keys of the sweep (`trials=4`), else of its run (`epochs=5`).

    Raises:
        ConfigError: as `load_run`.
    """
    with placed(file, overrides):
        return validated(Sweep, sweep_tree(file, overrides))


def _refuse_misspelt(keys: Iterable[str]) -> None:
    """Refuse a key that is nearly a sweep's; it would be searched in its run."""
    for key in keys:
        if key not in {**Sweep.model_fields, **Run.model_fields} and (hint := nearest(key, Sweep.model_fields)):
            raise ConfigError(f"unknown key {key}{hint}")


def sweep_tree(file: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read the settings of a sweep file and overrides, without defaults.

    Raises:
        ConfigError: the file is none, empty, or that of a run.
    """
    trees = [parse_override(text) for text in overrides]
    _refuse_misspelt(first for tree in trees for first in tree)
    changes = merged(*(tree if next(iter(tree)) in Sweep.model_fields else {"run": tree} for tree in trees))
    tree = read_tree(file)
    if not tree:
        example = "{method.temperature: [0.1, 0.2]}"
        raise ConfigError(f"{file} is empty; a sweep needs a `name` and what to `vary`, for example {example}")
    if not is_sweep(tree):
        raise ConfigError(f"{file} is a run file, as it has no `vary`: use `eagleray train {file}`")
    return merged(tree, changes)


def is_sweep(tree: Mapping[str, Any]) -> bool:
    """Return whether settings are a sweep's, not a run's."""
    return not tree.keys().isdisjoint(Sweep.model_fields)

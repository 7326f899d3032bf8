"""The settings of a run as a flat table: what records keep, tables show and MLflow filters."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from eagleray.config.run import Run, leaves, validated
from eagleray.config.sections import Chosen

# What cannot change the numbers of a run, but for rounding: where it runs and is kept, when it is measured and by what.
NEUTRAL = (
    *("tracking", "checkpoints", "device", "threads", "workers", "min_workers"),
    *("data.cache", "data.workers", "data.memory_limit", "data.download"),
    *("evaluate.test", "evaluate.every", "evaluate.batch_size", "evaluate.protocols"),
)


NOTHING = "nothing"  # an empty list as a param


def settings(run: Run) -> dict[str, Any]:
    """Return all settings of a run with dotted keys.

    Unset ones are left out, and so is `tracking`: it says where a run is sent, and may hold a password.
    """
    file = {key: value for key, value in run.file().items() if key != "tracking"}
    return {key: as_param(value) for key, value in leaves(file) if value is not None}


def unusual(run: Run) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from their defaults.

    They are compared with those of the same method, encoder, data and recipe: key -> the value, and the default.
    """
    tree = {kind: _needed(getattr(run, kind)) for kind in ("method", "encoder", "data")}
    mine, default = settings(run), settings(validated(Run, {**tree, "recipe": run.recipe}))
    keys = dict.fromkeys([*mine, *default])
    return {key: (mine.get(key), default.get(key)) for key in keys if mine.get(key) != default.get(key)}


def _needed(part: Chosen) -> dict[str, Any]:
    """Return the name of a part, and settings without a default."""
    values, fields = part.model_dump(mode="json"), type(part.config).model_fields
    return {"name": part.name, **{key: values[key] for key, field in fields.items() if field.is_required()}}


@cache
def is_neutral(key: str) -> bool:
    """Return whether a setting cannot change a run's numbers."""
    return any(key == each or key.startswith(f"{each}.") for each in NEUTRAL)


def as_param(value: Any) -> Any:
    """Convert a value for a record.

    Numbers and words stay, lists and whole variants become words.

    >>> as_param(["crop", "jitter"]), as_param({"method": {"name": "mae", "mask": 0.5}, "epochs": 5})
    ('crop+jitter', 'mae mask=0.5 epochs=5')
    >>> as_param(["rotnet", {"name": "jigsaw", "loss_weight": 0.5}])
    'rotnet+jigsaw loss_weight=0.5'
    """
    if isinstance(value, Mapping):
        return " ".join(_words(value))
    return "+".join(str(as_param(each)) for each in value) or NOTHING if isinstance(value, list | tuple) else value


def as_names(param: Any) -> list[str] | None:
    """Return the names of which `as_param` made a param, None if it is of another kind.

    >>> as_names("crop+jitter"), as_names("nothing"), as_names("mae mask=0.5"), as_names("0.5+0.8"), as_names(None)
    (['crop', 'jitter'], [], None, None, None)
    """
    names = [] if param == NOTHING else str(param).split("+")
    return names if isinstance(param, str) and all(map(str.isidentifier, names)) else None


def _words(variant: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in variant.items():
        if isinstance(value, Mapping):
            yield from _words(value, key)
        elif key == "name" or key in ("method", "encoder", "data"):
            yield str(value)
        else:
            yield f"{key}={as_param(value)}"

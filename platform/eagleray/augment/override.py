"""The `augment` section of a run laid over the views that a method declares."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eagleray.contracts.view import View

if TYPE_CHECKING:
    from eagleray.config.sections import Augment

# What switches each operation off.
_OFF: dict[str, Any] = {
    "crop": None, "shift": 0.0, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0,
    "rotate": 0.0, "randaugment": None, "cutout": 0.0,
}  # fmt: skip


def overridden(views: Sequence[View], augment: "Augment") -> tuple[View, ...]:
    """Each view with the run's settings in place of the method's; what is null stays."""
    return tuple(_overridden(view, augment) for view in views)


def _overridden(view: View, augment: "Augment") -> View:
    given = augment.model_dump(exclude={"crop_min", "only", "exact"}, exclude_none=True)
    view = replace(view, **given)
    if augment.crop_min is not None:
        largest = view.crop[1] if view.crop else 1.0
        view = replace(view, crop=(min(augment.crop_min, largest), largest))
    if augment.only is not None:
        view = replace(view, **{name: off for name, off in _OFF.items() if name not in augment.only})
    return view

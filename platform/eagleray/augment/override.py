"""A run's `augment` section, applied to a method's views."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from eagleray.contracts.view import OPERATIONS, View

if TYPE_CHECKING:
    from eagleray.config.sections import Augment


def overridden(views: Sequence[View], augment: "Augment") -> tuple[View, ...]:
    """Replace settings in each view by the run's.

    null keeps the method's.
    """
    only = OPERATIONS if augment.only is None else augment.only
    off = {name: value for name, value in OPERATIONS.items() if name not in only}
    return tuple(replace(replace(view, **augment.changes()), **off) for view in views)

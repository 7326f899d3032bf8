"""The `augment` section of a run laid over the views that a method declares."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from eagleray.contracts.view import OPERATIONS, View

if TYPE_CHECKING:
    from eagleray.config.sections import Augment


def overridden(views: Sequence[View], augment: "Augment") -> tuple[View, ...]:
    """Return each view with the run's settings in place of the method's; what is null stays."""
    only = OPERATIONS if augment.only is None else augment.only
    off = {name: value for name, value in OPERATIONS.items() if name not in only}
    return tuple(replace(replace(view, **augment.changes()), **off) for view in views)

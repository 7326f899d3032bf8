"""Images: read, kept, split and put in order.

`settings` is read by commands that must not wait for torch, so what needs torch is imported when asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eagleray.data.settings import DataSettings

if TYPE_CHECKING:
    from eagleray.data.load import Data, Images, load_data
    from eagleray.data.order import epoch_order, labelled_order

__all__ = ["Data", "DataSettings", "Images", "epoch_order", "labelled_order", "load_data"]

_HOMES = {
    "Data": "load",
    "Images": "load",
    "load_data": "load",
    "epoch_order": "order",
    "labelled_order": "order",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Views of images.

A method declares them (`View`); `make_view` computes them for whole batches.
"""

from eagleray.augment.papers import byol_views, moco_view, multi_crop, simclr_view
from eagleray.augment.perform import crop_boxes, evaluation_view, make_view, make_views
from eagleray.contracts.view import View

__all__ = [
    "View",
    "byol_views",
    "crop_boxes",
    "evaluation_view",
    "make_view",
    "make_views",
    "moco_view",
    "multi_crop",
    "simclr_view",
]

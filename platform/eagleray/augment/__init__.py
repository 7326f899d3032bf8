"""Views of images: declared by a method (`View`), performed on whole batches (`make_view`)."""

from eagleray.augment.papers import byol_views, moco_view, multi_crop, simclr_view
from eagleray.augment.perform import make_view, make_views, plain
from eagleray.contracts.view import View

__all__ = ["View", "byol_views", "make_view", "make_views", "moco_view", "multi_crop", "plain", "simclr_view"]

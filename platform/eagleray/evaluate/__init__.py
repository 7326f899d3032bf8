"""What a representation is worth: functions of features that were encoded once."""

from eagleray.evaluate.collapse import collapse, lidar
from eagleray.evaluate.features import Features, accuracy, encode_images
from eagleray.evaluate.knn import knn
from eagleray.evaluate.linear import linear

__all__ = ["Features", "accuracy", "collapse", "encode_images", "knn", "lidar", "linear"]

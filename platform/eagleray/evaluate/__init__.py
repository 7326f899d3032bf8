"""What a representation is worth: functions of features that were encoded once."""

from eagleray.evaluate.collapse import collapse
from eagleray.evaluate.features import Features, accuracy
from eagleray.evaluate.knn import knn
from eagleray.evaluate.linear import linear

__all__ = ["Features", "accuracy", "collapse", "knn", "linear"]

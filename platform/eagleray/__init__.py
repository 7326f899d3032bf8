"""Eagleray: which self-supervised method, and which settings of it, give the best representation for your images."""

__version__ = "0.1.0"

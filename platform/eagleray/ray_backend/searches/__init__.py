"""Searches, one in each file: they choose the points of a sweep."""

"""Searches, one in each file.

They choose the points of a sweep.
"""

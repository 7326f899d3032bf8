"""Contracts of methods, encoders, datasets and evaluators.

Also the values that pass between them.
"""

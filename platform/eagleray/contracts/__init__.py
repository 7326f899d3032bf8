"""Contracts of methods, encoders, datasets and evaluators, and the values that pass between them."""

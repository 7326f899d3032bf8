"""Schedulers, one in each file: they end or change the trials of a sweep during training."""

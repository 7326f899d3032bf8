"""Schedulers, one in each file.

They end or change the trials of a sweep during training.
"""

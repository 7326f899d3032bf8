"""The images of a run.

They are decoded once for all runs or streamed, then split and ordered by seed. This file imports nothing: the processes
of `workers.py` start without torch, which `images.py` imports.
"""

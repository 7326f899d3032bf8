"""Images as training sees them: decoded once for all runs, or streamed; split and ordered by seeds alone.

Nothing is imported here: the processes of `workers.py` start without torch, and `load.py` brings it.
"""

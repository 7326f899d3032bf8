"""Run and sweep files. Imports no torch.

Their settings, the errors for bad input, and the points of a sweep.
"""

from eagleray.config.run import Run, changed, load_run, read_run, run_keys, validated
from eagleray.config.sweep import Sweep
from eagleray.config.sweep_file import load_sweep

__all__ = ["Run", "Sweep", "changed", "load_run", "load_sweep", "read_run", "run_keys", "validated"]

"""Run and sweep files: what may stand in them, what bad input is told, and the points of a sweep. Knows no torch."""

from eagleray.config.run import Run, changed, load_run, read_run, run_keys, validated
from eagleray.config.sweep import Sweep, load_sweep

__all__ = ["Run", "Sweep", "changed", "load_run", "load_sweep", "read_run", "run_keys", "validated"]

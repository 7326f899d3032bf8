"""How large a sweep is: points, runs, epochs."""

from eagleray.config import Sweep
from eagleray.config.search_points import trial_count
from eagleray.runs.preflight import planned


def size(sweep: Sweep) -> str:
    """Return a sweep's size in words: `6 points x 2 seeds = 12 runs, 120 epochs`."""
    runs = trial_count(sweep)
    points = counted(runs // sweep.seeds, "point")
    shown = f"{points} x {sweep.seeds} seeds = {runs} runs" if sweep.seeds > 1 else counted(runs, "run")
    most = "at most " if sweep.learns or sweep.compares_every_epoch else ""
    return f"{shown}, {most}{counted(epochs(sweep), 'epoch')}"


def epochs(sweep: Sweep) -> int:
    """Return the epochs of all runs together, at most."""
    each = [run.epochs for run in planned(sweep)]
    return max(each) * trial_count(sweep) if sweep.learns else sum(each)


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"

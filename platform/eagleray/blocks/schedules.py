"""Schedules: functions of the finished share of training.

They never use a step counter.
"""

import math
from collections.abc import Sequence

from eagleray.contracts.batch import Progress


def cosine(start: float, end: float, fraction: float) -> float:
    """Follow half a cosine from `start` to `end`.

    `fraction` goes from 0 to 1 (Loshchilov & Hutter, 1608.03983).
    """
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, max(0.0, fraction)))) / 2


def warmup_cosine(peak: float, final: float, warmup_epochs: float, progress: Progress) -> float:
    """Rise linearly to `peak`, then fall by a cosine.

    It rises from 0 during the warm-up and ends at `final`. In training shorter than an epoch, the warm-up is that part
    of it.
    """
    warmup = min(1.0, warmup_epochs / max(1, progress.length))
    if progress.fraction < warmup:
        # The first step is not wasted at rate 0: step 0 of a warm-up of S steps has 1/S of the peak.
        return peak * min(1.0, (progress.step + 1) / (warmup * progress.steps))
    return cosine(peak, final, (progress.fraction - warmup) / max(1e-12, 1 - warmup))


def warmup_steps(peak: float, drops: Sequence[float], factor: float, warmup_epochs: float, progress: Progress) -> float:
    """Rise linearly to `peak`, then fall in steps.

    It rises from 0 during the warm-up, and is multiplied by `factor` at each of `drops`. Drops are given as parts of
    the training, from 0 to 1.
    """
    passed = sum(progress.fraction >= drop for drop in drops)
    return warmup_cosine(peak, peak, warmup_epochs, progress) * factor**passed


def ramp(start: float, end: float, over: float, progress: Progress) -> float:
    """Go linearly from `start` to `end`, then stay.

    It arrives after the first `over` epochs.
    """
    return end if over <= 0 else start + (end - start) * min(1.0, progress.epochs_done / over)

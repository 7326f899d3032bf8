"""Asynchronous successive halving: the worse trials end early.

Li et al. 2020, arXiv 1810.05934.
"""

from typing import TYPE_CHECKING

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from eagleray.contracts.scheduler import Scheduler

if TYPE_CHECKING:
    from eagleray.config import Sweep

HALVING = 3  # of as many trials that reach a rung, one continues (the paper uses 3 and 4)


class Asha(Scheduler):
    """End the worse trials early, but not before `grace` epochs."""

    def build(self, sweep: "Sweep", epochs: int, begun: int) -> TrialScheduler:
        """Return Ray's scheduler.

        Its rungs are at `grace`, 3 `grace`, 9 `grace`, ... epochs.
        """
        return ASHAScheduler(time_attr="epoch", grace_period=sweep.grace, max_t=epochs, reduction_factor=HALVING)

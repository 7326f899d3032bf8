"""Every trial runs to its end."""

from typing import TYPE_CHECKING, ClassVar

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from eagleray.contracts.scheduler import Scheduler

if TYPE_CHECKING:
    from eagleray.config import Sweep


class RunToTheEnd(Scheduler):
    """Let every trial run to its end."""

    compares: ClassVar[bool] = False

    def build(self, sweep: "Sweep", epochs: int, begun: int) -> TrialScheduler:
        """Return Ray's scheduler that stops nothing."""
        return FIFOScheduler()

"""Reports of the loop, and its error for divergence."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagleray.contracts.batch import Progress


class Diverged(RuntimeError):
    """The loss is NaN or infinite.

    Nothing was saved since the last good checkpoint.
    """


@dataclass(frozen=True)
class Report:
    """The state of training, as the loop reports it.

    Sent after every epoch, at every checkpoint, and about once a second in between.
    """

    progress: "Progress"
    metrics: dict[str, float]  # of the whole epoch when it ended; before that the means so far
    images_per_second: float
    epoch_ended: bool = False
    checkpoint: Path | None = None  # contains everything up to this report

    @property
    def numbers(self) -> dict[str, float]:
        """All recorded numbers: the metrics and the speed.

        A report repeated after resuming has no speed.
        """
        rate = {"images_per_second": self.images_per_second} if self.images_per_second else {}
        return {**self.metrics, **rate}

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return self.epoch_ended and self.progress.done

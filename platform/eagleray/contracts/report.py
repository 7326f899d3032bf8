"""Reports of the loop, and errors that end a run. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["infrastructure", "out of memory", "diverged", "settings", "bug"]  # of failures (runs/failures.py)


class Failed(RuntimeError):
    """A run or sweep has failed for a reason of a known kind."""

    kind: Kind = "bug"

    def __init__(self, message: str, kind: Kind | None = None):
        super().__init__(message)
        self.kind = kind or self.kind


class Diverged(Failed):
    """The loss is NaN or infinite.

    Nothing was saved since the last good checkpoint.
    """

    kind = "diverged"


class Preempted(Failed):
    """The machine is taken away. A checkpoint has everything up to the last step."""

    kind = "infrastructure"


class Stopped(KeyboardInterrupt):
    """A person has stopped a run or sweep that --resume can continue."""


@dataclass(frozen=True)
class Progress:
    """The state of training, from which schedules follow.

    `fraction` does not depend on the number of workers or on the batch size.
    """

    step: int  # optimizer steps done
    steps: int  # optimizer steps in all
    epoch: int  # epochs completed
    epochs: int  # in all; the last may be short
    steps_per_epoch: int | None = None  # of a whole epoch; None: all epochs are equally long

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    @property
    def fraction(self) -> float:
        """Share of the training done, from 0 to 1."""
        return self.step / max(1, self.steps)

    @property
    def epochs_done(self) -> float:
        """Epochs done, with the part of the current one."""
        return self.fraction * self.length

    @property
    def length(self) -> float:
        """Whole epochs in all, of a short one its part."""
        return self.steps / self.steps_per_epoch if self.steps_per_epoch else self.epochs


@dataclass(frozen=True)
class Report:
    """The state of training, as the loop reports it.

    Sent after every epoch, at every checkpoint, and about once a second in between.
    """

    progress: Progress
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

"""The contract of a scheduler of sweep trials.

It ends or changes trials while they run. This file imports no ray. A scheduler is one class in one file of
`ray_backend/schedulers/`; the file's name is what `scheduler=` takes. Its class variables are read from the source, so
a sweep file is checked without ray.
"""

from typing import Any, ClassVar

from pydantic import BaseModel

Sweep = Any  # a `config.Sweep`: contracts know nothing of the folders above them


class Scheduler:
    """A rule for trials that have reported an epoch."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Nothing to set: `grace` and `metric` belong to the sweep."""

    compares: ClassVar[bool] = True  # trials after every epoch, by the sweep's metric; `grace` then has an effect
    changes: ClassVar[bool] = False  # settings of trials while they run

    def build(self, sweep: Sweep, epochs: int, begun: int) -> Any:
        """Return Ray Tune's scheduler.

        Args:
            sweep: whose trials it watches.
            epochs: of the longest trial.
            begun: epochs that every unfinished trial of a resumed sweep has completed.
        """
        raise NotImplementedError

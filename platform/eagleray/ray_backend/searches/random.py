"""Points drawn at random, from the sweep's seed."""

from typing import TYPE_CHECKING

from eagleray.config.search_points import combinations
from eagleray.contracts.ranges import Choice, sample
from eagleray.contracts.search import Search, Values
from eagleray.contracts.seeds import numpy_generator

if TYPE_CHECKING:
    from eagleray.config import Sweep


class Random(Search):
    """Draw points at random."""

    def assignments(self, sweep: "Sweep") -> list[Values]:
        """Return `trials` points.

        If all values are listed, no combination comes twice. A population may start with equal points, because it
        changes them during training.
        """
        ranges = sweep.ranges()
        if all(isinstance(span, Choice) for span in ranges.values()) and not sweep.changes_trials:
            return combinations(sweep)
        rng = numpy_generator(sweep.seed)
        return [{key: sample(span, rng) for key, span in ranges.items()} for _ in range(sweep.trials or 0)]

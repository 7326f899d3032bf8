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

        No point comes twice, so there are fewer if there are no more. A population may start with equal points,
        because it changes them during training.
        """
        ranges, wanted = sweep.ranges(), sweep.trials or 0
        if all(isinstance(span, Choice) for span in ranges.values()) and not sweep.changes_trials:
            return combinations(sweep)
        rng, points = numpy_generator(sweep.seed), list[Values]()
        for _ in range(wanted if sweep.changes_trials else 100 * wanted):
            values = {key: sample(span, rng) for key, span in ranges.items()}
            if sweep.changes_trials or values not in points:
                points.append(values)
            if len(points) == wanted:
                break
        return points

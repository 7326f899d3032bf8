"""All combinations of listed values, or `trials` of them."""

from typing import TYPE_CHECKING, ClassVar

from eagleray.config.search_points import combinations
from eagleray.contracts.search import Search, Values

if TYPE_CHECKING:
    from eagleray.config import Sweep


class Grid(Search):
    """Try all combinations of listed values."""

    tries_all: ClassVar[bool] = True

    def assignments(self, sweep: "Sweep") -> list[Values]:
        """Return combinations in order, or `trials` drawn at random."""
        return combinations(sweep)

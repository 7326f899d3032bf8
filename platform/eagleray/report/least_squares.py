"""Least squares: models whose parts are blocks of columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ROUNDING = 1e-20  # squares that are a smaller share of the mean square are rounding


@dataclass(frozen=True)
class Squares:
    """A sum of squares and its degrees of freedom."""

    total: float
    free: int

    @property
    def mean(self) -> float:
        return self.total / self.free if self.free > 0 else 0.0


@dataclass(frozen=True)
class Fit:
    """A least-squares fit of a constant and some columns."""

    parts: "Sequence[np.ndarray]"  # of the design, each [N, d]
    target: "np.ndarray"  # [N]
    weights: "np.ndarray"  # of the constant, then of the columns
    rest: float  # sum of the squared residuals
    rank: int

    @classmethod
    def of(cls, parts: "Sequence[np.ndarray]", target: "np.ndarray") -> "Fit":
        import numpy as np

        design = np.column_stack([np.ones(len(target)), *parts])
        weights, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
        rest = float(np.square(target - design @ weights).sum())
        return cls(parts, target, weights, rest if rest > ROUNDING * float(target @ target) else 0.0, int(rank))

    @property
    def residual(self) -> Squares:
        return Squares(self.rest, len(self.target) - self.rank)

    def without(self, larger: "Fit") -> Squares:
        """Return what a larger model explains in addition."""
        return Squares(max(0.0, self.rest - larger.rest), larger.rank - self.rank)

    def part(self, place: int) -> "np.ndarray":
        """Return a part's contribution to the fit, [N]."""
        first = 1 + sum(each.shape[1] for each in self.parts[:place])
        return self.parts[place] @ self.weights[first : first + self.parts[place].shape[1]]

    def mean(self, place: int, rows: Sequence[bool]) -> tuple[float, float]:
        """Return the mean if all runs were like some rows in one part.

        Also its variance, as a multiple of the noise's.
        """
        import numpy as np

        means = [each[rows].mean(0) if at == place else each.mean(0) for at, each in enumerate(self.parts)]
        contrast = np.concatenate([[1.0], *means])
        design = np.column_stack([np.ones(len(self.target)), *self.parts])
        return float(contrast @ self.weights), float(contrast @ np.linalg.pinv(design.T @ design) @ contrast)


def indicators(labels: Sequence[object]) -> "np.ndarray":
    """Return a column for each label: [N, labels], zeros and ones."""
    import numpy as np

    return np.array([[label == each for each in dict.fromkeys(labels)] for label in labels], float)


def polynomial(values: Sequence[float], degree: int) -> "np.ndarray":
    """Return Legendre polynomials of the values' ranks: [N, degree].

    Ranks, because values drawn from a range are then evenly spaced, whatever its scale is. Equal values (of one point)
    have one rank.
    """
    import numpy as np

    known, places = np.unique(np.asarray(values, float), return_inverse=True)
    spaced = (2 * np.arange(len(known)) + 1) / len(known) - 1
    return np.polynomial.legendre.legvander(spaced, degree)[places.ravel(), 1:]

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
class Left:
    """What a model of N values leaves over."""

    target: "np.ndarray"  # [N]
    rest: float  # sum of the squared residuals
    rank: int

    @property
    def residual(self) -> Squares:
        return Squares(self.rest, len(self.target) - self.rank)

    def without(self, larger: "Left") -> Squares:
        """Return what a larger model explains in addition."""
        return Squares(max(0.0, self.rest - larger.rest), larger.rank - self.rank)


@dataclass(frozen=True)
class Fit(Left):
    """A least-squares fit of a constant and some columns."""

    parts: "Sequence[np.ndarray]"  # of the design, each [N, d]
    weights: "np.ndarray"  # of the constant, then of the columns

    @classmethod
    def of(cls, parts: "Sequence[np.ndarray]", target: "np.ndarray") -> "Fit":
        import numpy as np

        design = np.column_stack([np.ones(len(target)), *parts])
        weights, rest, rank = _solved(design, target)
        return cls(target, rest if rest > _rounding(target) else 0.0, rank, parts, weights)

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


def left_within(groups: Sequence[object], parts: "Sequence[np.ndarray]", target: "np.ndarray") -> Left:
    """Fit a constant for each group and some columns.

    The columns are fitted to what the groups' means leave over, which is the same (Frisch and Waugh 1933,
    https://doi.org/10.2307/1907330), because a column for each of many groups would be slow.
    """
    import numpy as np

    known: dict[object, int] = {}
    places = np.array([known.setdefault(group, len(known)) for group in groups])

    def within(columns: "np.ndarray") -> "np.ndarray":
        sums = np.zeros((len(known), columns.shape[1]))
        np.add.at(sums, places, columns)
        return columns - (sums / np.bincount(places)[:, None])[places]

    design = within(np.column_stack([np.empty((len(target), 0)), *parts]))
    _, rest, rank = _solved(design, within(target[:, None])[:, 0])
    return Left(target, rest if rest > _rounding(target) else 0.0, len(known) + rank)


def _solved(design: "np.ndarray", target: "np.ndarray") -> "tuple[np.ndarray, float, int]":
    """Return weights, the sum of the squared residuals and the rank."""
    import numpy as np

    weights, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    return weights, float(np.square(target - design @ weights).sum()), int(rank)


def _rounding(target: "np.ndarray") -> float:
    return ROUNDING * float(target @ target)


def indicators(labels: Sequence[object]) -> "np.ndarray":
    """Return a column for each label: [N, labels], zeros and ones."""
    import numpy as np

    known = list(dict.fromkeys(labels))
    return np.array([[label == each for each in known] for label in labels], float)


def polynomial(values: Sequence[float], degree: int) -> "np.ndarray":
    """Return Legendre polynomials of the values' ranks: [N, degree].

    Ranks, because values drawn from a range are then evenly spaced, whatever its scale is. Equal values (of one point)
    have one rank.
    """
    import numpy as np

    known, places = np.unique(np.asarray(values, float), return_inverse=True)
    spaced = (2 * np.arange(len(known)) + 1) / len(known) - 1
    return np.polynomial.legendre.legvander(spaced, degree)[places.ravel(), 1:]

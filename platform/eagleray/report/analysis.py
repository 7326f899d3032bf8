"""Analyse a sweep: its leaderboard and its keys' effects.

`text.py` puts them into words. Nothing slow is imported.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from eagleray.config.metrics import Table, shipped
from eagleray.report.effects import Effects, combined, levels
from eagleray.report.equal_epochs import EqualEpochs, at_equal_epochs
from eagleray.report.leaderboard import Mode, Row, TrialResult, leaderboard
from eagleray.report.means import Difference, difference
from eagleray.report.numbers import distinct_texts, param_text


@dataclass(frozen=True)
class Compared:
    """The winner beside a floor."""

    floor: Row
    gain: float  # the winner's mean less the floor's, over the seeds that both have
    test: Difference | None  # None: less than two such seeds, so nothing is known of the noise


@dataclass(frozen=True)
class Analysis:
    """All results of a sweep."""

    metric: str
    mode: Mode
    varied: tuple[str, ...]
    binned: frozenset[str]  # the varied keys whose values were drawn from a range, not from a list
    rows: list[Row]  # of the leaderboard, the best first
    equal: EqualEpochs  # the runs that effects are computed from
    table: Table = field(default_factory=shipped)  # what its metrics mean

    @property
    def tried(self) -> list[Row]:
        """The points that measured something, the best first."""
        return [row for row in self.rows if not row.floor and row.values]

    @property
    def floors(self) -> list[Row]:
        """The floors that measured something, the best first."""
        return [row for row in self.rows if row.floor and row.values]

    @property
    def winner(self) -> Row | None:
        """The best point all of whose runs finished.

        If there is none, the best with a finished run, or the best.
        """
        whole = (row for row in self.tried if set(row.states) == {"finished"} and len(row.values) == len(row.runs))
        partly = (row for row in self.tried if "finished" in row.states)
        return next(whole, None) or next(partly, None) or next(iter(self.tried), None)

    @cached_property
    def comparable(self) -> list[Row]:
        """The points as effects are computed from them: at equal epochs."""
        return [row for row in leaderboard(self.equal.results, self.metric, self.mode) if row.values]

    @cached_property
    def effects(self) -> Effects:
        """The effects of the varied keys."""
        return Effects(self.comparable, self.varied, self.binned)

    def text(self, key: str, value: Any) -> str:
        """Return the text of a key's value; different values of a list look different."""
        return param_text(value) if key in self.binned else self._texts[key][value]

    @cached_property
    def _texts(self) -> dict[str, dict[Any, str]]:
        return {key: distinct_texts(row.params[key] for row in self.rows if key in row.params) for key in self.varied}

    def levels(self, key: str) -> dict[Any, str]:
        """Map each value of a key to its level (`effects.levels`)."""
        return levels(self.comparable, key, is_drawn=key in self.binned)

    def parts(self, key: str) -> list[str]:
        """List the operations that a key combines, if it does."""
        return combined(self.comparable, key)

    @cached_property
    def differences(self) -> list[Compared]:
        """Compare the winner with each floor, paired by seed.

        Runs of one seed share their validation images. The gains of the other points help to estimate the noise.
        """
        best = self.winner
        return [] if best is None else [self._difference(best, floor) for floor in self.floors]

    @property
    def comparisons(self) -> int:
        """How many differences from floors could have been the best.

        The winner is the best of all points: what is said of it must allow for that.
        """
        return len(self.tried) * len(self.floors)

    def _difference(self, best: Row, floor: Row) -> Compared:
        its = dict(floor.measured_runs)
        seeds = [seed for seed, _ in best.measured_runs if seed in its and seed is not None]
        if not seeds:
            return Compared(floor, fmean(best.values) - fmean(floor.values), None)
        others = (row for row in self.tried if row is not best and set(row.states) == {"finished"})
        known = [dict(row.measured_runs) for row in (best, *others)]
        gains = [[each[seed] - its[seed] for seed in seeds] for each in known if set(seeds) <= set(each)]
        return Compared(floor, fmean(gains[0]), difference(gains, self.comparisons))


def analyse(
    results: Iterable[TrialResult],
    varied: Iterable[str],
    metric: str,
    mode: Mode,
    binned: Collection[str] = (),
    table: Table | None = None,
) -> Analysis:
    """Analyse the runs of a sweep.

    Args:
        results: of its runs and floors, in any order.
        varied: the keys that the sweep varies.
        metric: the one to compare.
        mode: whether more (max) or less (min) is better.
        binned: the keys whose values were drawn from a range: nearly all differ, so ranges of values are compared.
        table: the declarations of the metrics; by default those that ship with the project.
    """
    results = list(results)
    rows, equal = leaderboard(results, metric, mode), at_equal_epochs(results, metric)
    return Analysis(metric, mode, tuple(varied), frozenset(binned), rows, equal, shipped() if table is None else table)

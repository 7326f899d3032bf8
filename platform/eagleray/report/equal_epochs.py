"""Compare runs at equal epochs.

A scheduler stops the worse runs. Their last numbers had less training, and those that it let finish are a selection:
from either, a key seems to matter that does not. So effects are taken at the last epoch that all runs reached. What a
person or the end of a budget has stopped, or what still runs, was not chosen by its numbers and is left out. A run that
collapsed or failed counts with the last that it measured: that is where its settings led.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from eagleray.config.budget import OVER
from eagleray.report.leaderboard import TrialResult

UNCHOSEN = (OVER, "by a person")  # reasons to stop a run that have nothing to do with its numbers


@dataclass(frozen=True)
class EqualEpochs:
    """The runs of a sweep as its effects are computed from them."""

    results: Sequence[TrialResult]
    epoch: int | None = None  # at which all are compared; None: at the end of each
    left_out: int = 0  # unfinished runs
    obstacle: str = ""  # why no effect can be told

    @property
    def note(self) -> str:
        """What was done, as a part of a sentence; empty: nothing was necessary."""
        parts = [self.obstacle] if self.obstacle else []
        parts += [f"effects are told at epoch {self.epoch}, the last that all runs reached"] if self.epoch else []
        one, many = "1 unfinished run is", f"{self.left_out} unfinished runs are"
        parts += [f"{one if self.left_out == 1 else many} left out of the effects"] if self.left_out else []
        return "; ".join(parts)


def at_equal_epochs(results: Iterable[TrialResult], metric: str) -> EqualEpochs:
    """Return what the effects of keys on a metric may be computed from."""
    trials = [each for each in results if not each.floor]
    kept = [each for each in trials if not _is_open(each)]
    left_out = sum(metric in each.metrics for each in trials) - sum(metric in each.metrics for each in kept)
    stopped = [each for each in kept if each.state == "stopped"]
    if not stopped:
        return EqualEpochs(kept, left_out=left_out)
    whole = [*stopped, *(each for each in kept if each.state == "finished" and metric in each.metrics)]
    common = set[int].intersection(*(set(_measured(each, metric)) for each in whole))
    if not common:
        runs = "1 run was" if len(stopped) == 1 else f"{len(stopped)} runs were"
        where = "" if any(each.epochs for each in whole) else ", as MLflow has no epochs: name the sweep's directory"
        why = f"{runs} stopped early, and no epoch is known at which all runs measured {metric}{where}"
        return EqualEpochs([], left_out=left_out, obstacle=why)
    epoch = max(common)
    return EqualEpochs([_at(each, metric, epoch) for each in kept], epoch, left_out)


def _is_open(result: TrialResult) -> bool:
    return result.state == "running" or (result.state == "stopped" and result.message in UNCHOSEN)


def _measured(result: TrialResult, metric: str) -> list[int]:
    return [epoch for epoch, metrics in result.epochs.items() if metric in metrics]


def _at(result: TrialResult, metric: str, epoch: int) -> TrialResult:
    """Return a run with its metric at an epoch, or at the last before that it measured."""
    last = max((each for each in _measured(result, metric) if each <= epoch), default=None)
    return replace(result, metrics={} if last is None else {metric: result.epochs[last][metric]})

"""Show a sweep while it runs: a table in a terminal, else a line for each event."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from eagleray.app.terminal import FRAMES, Pace, duration, short, state_text, table
from eagleray.report.numbers import number, param_text, spread

ENDED = ("finished", "stopped", "collapsed", "failed")
BEST = 5  # ended trials that are shown where there is no room for all
LABEL = 24  # characters of a trial's name in a live table
KEY = 8  # characters that a column of a varied key needs at least, with the gap
BAR = 20  # characters of a progress bar
PATIENCE = 10  # seconds between lines about the work after the trials
SILENCE = 60  # seconds between lines about the epochs of one trial
cut = partial(Text, no_wrap=True, overflow="ellipsis")  # a cell of one line


@dataclass
class Line:
    """The state of one trial."""

    params: Mapping[str, Any]
    state: str
    epoch: int
    epochs: int | None  # None: unknown yet
    metrics: Mapping[str, float]

    @property
    def reached(self) -> str:
        """The last epoch, of how many."""
        return f"{self.epoch}/{self.epochs or '?'}"


class SweepDisplay:
    """A live table of a sweep's trials.

    Without a terminal, a line is printed for each event: a trial that starts or ends, a floor, and at most once a
    minute an epoch of a trial.

        with SweepDisplay(...) as watch:
            sweep(..., watch=watch)

    Args:
        title: of the table.
        metric: the one to show.
        count: number of trials in the sweep.
        console: to print to.
        mode: whether more is better (max) or less (min).
    """

    def __init__(self, title: str, metric: str, count: int, console: Console, mode: str = "max"):
        self.title, self.metric, self.count, self.console, self.mode = title, metric, count, console, mode
        self.lines: dict[str, Line] = {}
        self.floors: dict[str, str] = {}  # name -> its metric, as text
        self.began, self.pace = time.monotonic(), Pace()
        self.working: tuple[str, int, int] | None = None  # what is done after the trials, and how much of it
        self._worked = self.began  # when its last line was printed
        self._printed: dict[str, float] = {}  # label -> when its last line was printed
        self._size = console.size
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=FRAMES, transient=True)

    def __enter__(self) -> "SweepDisplay":
        self._print(f"{self.title} ({self.count} trials)")
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def data(self, read: Sequence[str]) -> None:
        """Show what was read (see `ray_backend.callbacks.Watch`)."""
        for line in read:
            self._print(f"data: {line}")

    def trial(
        self,
        label: str,
        params: Mapping[str, Any],
        state: str,
        epoch: int,
        epochs: int | None,
        metrics: Mapping[str, float],
    ) -> None:
        """Show the state of a trial (see `ray_backend.callbacks.Watch`)."""
        before = self.lines.get(label)
        self.lines[label] = Line(params, state, epoch, epochs, metrics or (before.metrics if before else {}))
        if not self.console.is_terminal and self._is_event(label, before):
            self._printed[label] = time.monotonic()
            self._print(self._event(label))

    def floor(self, name: str, metrics: Sequence[Mapping[str, float]]) -> None:
        """Show a measured floor (see `ray_backend.callbacks.Watch`)."""
        self.floors[name] = spread([each[self.metric] for each in metrics if self.metric in each])
        if not self.console.is_terminal:
            self._print(f"floor {name}: {self.metric} {self.floors[name]}")

    def work(self, what: str, done: int, total: int) -> None:
        """Show how much of some work is done (see `ray_backend.callbacks.Watch`)."""
        self.working = (what, done, total) if done < total else None
        is_due = time.monotonic() - self._worked >= PATIENCE
        if not self.console.is_terminal and (done == total > 1 or is_due):
            self._worked = time.monotonic()
            self._print(f"{done} of {total} {what}")

    def _is_event(self, label: str, before: Line | None) -> bool:
        now = self.lines[label]
        if before is None or now.state != before.state:
            return now.state != "waiting"
        is_due = time.monotonic() - self._printed.get(label, self.began) >= SILENCE
        return now.state == "running" and now.epoch > before.epoch and is_due

    def _event(self, label: str) -> str:
        line = self.lines[label]
        params = " ".join(f"{key}={param_text(value)}" for key, value in line.params.items())
        value = f"{self.metric} {number(line.metrics[self.metric])}" if self.metric in line.metrics else "no number"
        ended = sum(each.state in ENDED for each in self.lines.values())
        left = "".join(f", {each}" for each in self._left())
        running = f"epoch {line.reached}, {value}" if line.epoch else "started"
        state = f"{line.state} after epoch {line.epoch}, {value}{left}" if line.state in ENDED else running
        return f"[{ended}/{self.count}] {label} {params}: {state}"

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=not self.console.is_terminal, highlight=False, markup=False)

    def table(self) -> RenderableType:
        """Return the table of the trials, no wider and no higher than the terminal."""
        if self.console.size != self._size:
            self._size = self.console.size
            self.console.clear()  # the terminal has moved the lines of the last frame, so they cannot be found again
        lines = dict(self.lines)
        shown = self._chosen(lines, max(BEST + 1, self.console.height - 7 - bool(self.working)))
        trials, unseen = self._rows({label: lines[label] for label in shown})
        work = [self._work()] if self.working else []
        return Group(trials, Text(self._summary(len(lines) - len(shown), unseen), style="dim"), *work)

    def _work(self) -> RenderableType:
        """Return a progress bar of the work after the trials."""
        what, done, total = self.working or ("", 0, 1)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total, done, width=BAR), cut(f"{done} of {total} {what}"))
        return bar

    def _chosen(self, lines: Mapping[str, Line], room: int) -> list[str]:
        """Choose the trials to show.

        Where there is no room for all, the running ones and the best that have ended.
        """
        if len(lines) <= room:
            return list(lines)
        done = [label for label, line in lines.items() if line.state in ENDED and self.metric in line.metrics]
        best = sorted(done, key=lambda label: lines[label].metrics[self.metric], reverse=self.mode == "max")[:BEST]
        running = [label for label, line in lines.items() if line.state == "running"]
        return [*running[: room - len(best)], *best]

    def _rows(self, lines: Mapping[str, Line]) -> tuple[Table, int]:
        """Return a table of one line a trial, and how many varied keys it has no room for."""
        keys = list(dict.fromkeys(key for line in lines.values() for key in line.params))
        widths = [
            min(LABEL, max(map(len, lines), default=0)),
            len("epoch") + 2,
            max(6, len(self.metric)),
            len("collapsed"),
        ]
        room = self.console.width - sum(widths) - 2 * len(widths)
        shown = keys[: max(0, room // KEY)]
        body = [self._cells(label, line, shown) for label, line in lines.items()]
        result = table(["trial", *short(shown), "epoch", self.metric, "state"], body)
        for column in result.columns:
            column.no_wrap = column.header in ("epoch", "state")  # the others give way where there is no room
            column.header, column.max_width = cut(str(column.header)), LABEL
        return result, len(keys) - len(shown)

    def _cells(self, label: str, line: Line, keys: Sequence[str]) -> list[RenderableType]:
        params = [cut(param_text(line.params[key]) if key in line.params else "") for key in keys]
        value = number(line.metrics[self.metric]) if self.metric in line.metrics else ""
        return [cut(label), *params, cut(line.reached), cut(value), state_text(line.state)]

    def _summary(self, hidden: int, unseen: int) -> str:
        states = Counter(line.state for line in self.lines.values())
        states["waiting"] += self.count - len(self.lines)  # those that a search has still to choose, too
        parts = [f"{count} {state}" for state, count in sorted(states.items()) if count > 0]
        floors = [f"{name} {reached}" for name, reached in self.floors.items()]
        more = [f"{hidden} more trials not shown"] if hidden else []
        more += [f"{unseen} more settings not shown"] if unseen else []
        return ", ".join([*parts, *floors, *more, duration(time.monotonic() - self.began), *self._left()])

    def _left(self) -> list[str]:
        """Estimate the time of training left from the epochs done since the first trial began to run.

        Trials of an earlier start are shown before that, so they do not count as fast.
        """
        lines = list(self.lines.values())
        if self.pace.first is None and not any(line.state == "running" for line in lines):
            return []
        done = sum(1 if line.state in ENDED else line.epoch / (line.epochs or float("inf")) for line in lines)
        left = self.pace.left(done / self.count)
        return [f"about {left} of training left"] if left and done < self.count else []

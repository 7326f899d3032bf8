"""Show runs in a terminal, and tables.

Where there is no terminal, a line is printed for each event.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from eagleray.config import Run
from eagleray.config.metrics import headlines, meaning_of, metrics_of, ordered, shipped
from eagleray.contracts.evaluator import Table as Rows
from eagleray.contracts.interval import CONFIDENCE
from eagleray.contracts.report import Report
from eagleray.report.analysis import Analysis
from eagleray.report.numbers import number
from eagleray.report.text import leaderboard_table, what_intervals_are
from eagleray.runs.measured import Number

UNLIMITED = Console(width=10_000)  # to measure tables
COLORS = {"finished": "green", "running": "cyan", "collapsed": "yellow", "stopped": "yellow", "failed": "red"}
# Columns that are never broken.
WHOLE = ("", "trial", "epoch", "run", "kind", "age", "state", "method", "encoder", "dataset", "setting")
NO_NUMBERS: Mapping[str, Number] = {}
TOP = 20  # points of a leaderboard that are shown unless more are asked for
FRAMES = 1  # a second: drawing costs the machine of the trials less than a hundredth of a core


def table(heads: Sequence[str], lines: Iterable[Sequence[RenderableType]]) -> Table:
    """Return a table with numbers aligned to the right."""
    lines = list(lines)
    result = Table(box=None, header_style="bold", pad_edge=False)
    for place, head in enumerate(heads):
        numeric = all(_is_number(line[place]) for line in lines)
        result.add_column(escape(head), justify="right" if numeric else "left", no_wrap=head in WHOLE)
    for line in lines:
        result.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in line))
    return result


def leaderboard(
    analysis: Analysis, width: int | None = None, *, ranked: bool = True, top: int | None = TOP
) -> Table | Text:
    """Return a sweep's leaderboard as a table.

    Floors are in italics, states in colour.

    Args:
        analysis: of the sweep.
        width: of the terminal (see `fitted`); None: no limit.
        ranked: whether the metric ranks the rows.
        top: the points to show, the best first; None: all. Floors are always shown.
    """
    heads, lines = leaderboard_table(analysis)
    places = _shown(analysis, top)
    lines = [lines[place] for place in places]
    if not ranked:
        heads, lines = heads[1:], [line[1:] for line in lines]
    result = fitted(heads, lines, width, optional={name for row in analysis.rows for name in row.metrics})
    if isinstance(result, Table):
        for line, row in zip(result.rows, (analysis.rows[place] for place in places), strict=True):
            line.style = "italic dim" if row.floor else None
        result.caption, result.caption_justify = what_intervals_are(analysis), "left"
    return result


def hidden(analysis: Analysis, top: int | None = TOP) -> int:
    """Return how many points a leaderboard does not show."""
    return len(analysis.rows) - len(_shown(analysis, top))


def _shown(analysis: Analysis, top: int | None) -> list[int]:
    points = [place for place, row in enumerate(analysis.rows) if not row.floor]
    unseen = set() if top is None else set(points[top:])
    return [place for place in range(len(analysis.rows)) if place not in unseen]


def fitted(
    heads: Sequence[str], lines: Sequence[Sequence[str]], width: int | None, optional: Collection[str] = ()
) -> Table | Text:
    """Return a table of runs that is never cut.

    If it is too wide, its optional columns are left out; if it still is, each row becomes a line of text.
    """
    for places in (range(len(heads)), [place for place, head in enumerate(heads) if head not in optional]):
        cells = [[_cell(heads[place], line[place]) for place in places] for line in lines]
        result = table(short([heads[place] for place in places]), cells)
        if width is None or Measurement.get(UNLIMITED, UNLIMITED.options, result).maximum <= width:
            return result
    return Text("\n".join(_as_line(heads, line) for line in lines), overflow="fold")


def _cell(head: str, text: str) -> RenderableType:
    return state_text(text) if head == "state" else text


def _as_line(heads: Sequence[str], line: Sequence[str]) -> str:
    """Write a row as words: `1  003  knn=0.9  finished`."""
    cells = [(head, cell) for head, cell in zip(heads, line, strict=True) if cell]
    return "  ".join(cell if head in WHOLE else f"{head}={cell}" for head, cell in cells)


def metrics_table(metrics: Mapping[str, float], run: Run, numbers: Mapping[str, Number] = NO_NUMBERS) -> Table:
    """Return final metrics as a table, with what they mean.

    The most important come first. Where the images and the interval of numbers are known, they are shown.
    """
    known = {name: metric.meaning for name, metric in metrics_of(run).items()}
    names = ordered(metrics, metrics_of(run))
    behind = {"images": _images, f"{CONFIDENCE:.0%} interval": _interval} if numbers else {}
    return table(
        ["metric", "value", *behind, "meaning"],
        [
            [
                name,
                number(metrics[name]),
                *(text(numbers.get(name)) for text in behind.values()),
                meaning_of(name, known),
            ]
            for name in names
        ],
    )


def _images(one: Number | None) -> str:
    return f"{one.images:,}" if one else ""


def _interval(one: Number | None) -> str:
    return " to ".join(map(number, one.interval)) if one and one.interval else ""


def found_table(rows: Rows) -> Table:
    """Return a table that an evaluator has found; its first row has the heads."""
    heads, *lines = rows
    cells = [[cell if isinstance(cell, str) else _count_or_share(cell) for cell in line] for line in lines]
    return table([str(head) for head in heads], cells)


def _count_or_share(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)


def short(keys: Sequence[str]) -> list[str]:
    """Shorten dotted keys to their last part, if unique.

    Of a name it is the part that it names: `method` of `method.name`.
    """
    lasts = [key.removesuffix(".name").rpartition(".")[2] for key in keys]
    counts = Counter(lasts)
    return [last if counts[last] == 1 else key for key, last in zip(keys, lasts, strict=True)]


# --- one run ---------------------------------------------------------------------------------------------------


def followed(reports: Iterator[Report], name: str, console: Console, data: str = "") -> Iterator[Report]:
    """Show reports and pass them on.

    A terminal shows a progress bar, anything else a line for each epoch.

    Args:
        reports: of the loop.
        name: of the run.
        console: to print to.
        data: what was read, printed first.
    """
    pace = Pace()
    if data:
        console.print(f"data: {data}", soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        for report in reports:
            if report.epoch_ended:
                console.print(f"{name}  {_line(report, pace)}", soft_wrap=True, highlight=False)
            yield report
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
    with Progress(*columns, console=console, refresh_per_second=FRAMES) as bar:
        task = bar.add_task(escape(name), total=1.0, text="starting")
        for report in reports:
            bar.update(task, completed=report.progress.fraction, text=_line(report, pace))
            yield report


@dataclass
class Pace:
    """Estimates the time left from the progress so far."""

    began: float = field(default_factory=time.monotonic)
    first: float | None = None  # fraction at the first report

    def left(self, fraction: float) -> str:
        """Return the time left as m:ss or h:mm:ss.

        It is an empty string as long as it is unknown, and in the last second.
        """
        if self.first is None:
            self.began, self.first = time.monotonic(), fraction
        if fraction <= self.first:
            return ""
        seconds = (time.monotonic() - self.began) / (fraction - self.first) * (1 - fraction)
        return duration(seconds) if seconds >= 1 else ""


def _line(report: Report, pace: Pace) -> str:
    progress, metrics = report.progress, report.metrics
    left = pace.left(progress.fraction)
    parts = [f"epoch {min(progress.epochs, progress.epoch + (not report.epoch_ended))}/{progress.epochs}"]
    parts += [f"{name} {number(metrics[name])}" for name in ("loss", *headlines(shipped())) if name in metrics]
    parts += [f"{report.images_per_second:,.0f} images/s"] if report.images_per_second else []
    return "  ".join([*parts, f"{left} left"] if left and not report.done else parts)


def duration(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def state_text(state: str) -> Text:
    return Text(state, style=next((color for word, color in COLORS.items() if word in state), "dim"))


def _is_number(cell: RenderableType) -> bool:
    text = str(cell).partition(" ±")[0].partition("/")[0].partition(" (no")[0].partition(" of ")[0]
    if text in ("", "–"):
        return True
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True

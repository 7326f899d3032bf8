"""Report a sweep in words and tables.

A report is one sentence, a page of Markdown, or tables for spreadsheets.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from statistics import fmean

from eagleray.config.floors import MEANINGS
from eagleray.config.metrics import headlines, ordered
from eagleray.report.analysis import Analysis
from eagleray.report.finding import finding
from eagleray.report.leaderboard import Row, TrialResult
from eagleray.report.means import margin
from eagleray.report.numbers import p_text, spread, with_margin

Table = tuple[list[str], list[list[str]]]  # the heads of the columns, and the rows


def on_test_set(analysis: Analysis) -> str:
    """Return the winner's metrics on the test set.

    Nothing was chosen on it. The metrics of the floors are added.
    """
    if (winner := analysis.winner) is None:
        return ""
    parts = []
    for name in sorted(name for name in winner.others if name.startswith("test_")):
        floors = [f"{row.name} {spread(row.others[name])}" for row in analysis.floors if name in row.others]
        compared = f" ({', '.join(floors)})" if floors else ""
        parts.append(f"{name} {spread(winner.others[name])}{compared}")
    return f"The winner ({winner.name}) on the test set: {', '.join(parts)}." if parts else ""


def markdown(analysis: Analysis, *, name: str, question: str, picture: str | None, notes: Iterable[str]) -> str:
    """Return the report of a sweep in Markdown.

    Args:
        analysis: of the sweep.
        name: the title.
        question: that the sweep was to answer.
        picture: file name of the heat map, if one was drawn.
        notes: other facts for the reader: what failed, what was stopped.
    """
    parts = [f"# {name}", question, f"**{finding(analysis)}**"]
    # In words, because MLflow shows no pictures of Markdown.
    where = f"{picture} beside this file shows {analysis.metric} by what was varied; report.html holds it too."
    parts += [where] if picture else []
    parts += ["## Leaderboard", _markdown_table(leaderboard_table(analysis))]
    parts += [what_intervals_are(analysis), what_floors_are(analysis)]
    parts += ["\n".join(f"- {note}" for note in notes), on_test_set(analysis)]
    parts += _effects(analysis) if analysis.effects.each else []
    return "\n\n".join(filter(None, parts)) + "\n"


def what_intervals_are(analysis: Analysis) -> str:
    """Return a sentence on the leaderboard's numbers."""
    several = any(len(row.values) > 1 for row in analysis.rows)
    parts = ["±: 95 % t interval of the mean over seeds" if several else "One seed each: no interval"]
    if len(analysis.tried) > 1:
        parts.append(f"the best of {len(analysis.tried)} points looks better than it is, because it was chosen for it")
    if early := sum(max(0, len(row.values) - row.states.get("finished", 0)) for row in analysis.tried):
        runs = "1 run did not finish and counts" if early == 1 else f"{early} runs did not finish and count"
        parts.append(f"{runs} with the last that was measured")
    parts += [analysis.equal.note] if analysis.equal.note else []
    return f"{'; '.join(parts)}."


def _effects(analysis: Analysis) -> list[str]:
    shares = [_markdown_table(shares_table(analysis))] if analysis.effects.shares else []
    return [
        "## What made the difference",
        _markdown_table(effects_table(analysis)),
        *shares,
        *how_effects_are(analysis),
    ]


def how_effects_are(analysis: Analysis) -> list[str]:
    """Return sentences on the numbers of the effects."""
    effects = analysis.effects
    means = "Means are fitted: seeds and other keys give no value an advantage. ±: 95 % t interval."
    parts = [f"{means} p: {effects.test}."]
    later = "; with a larger grace they are told later" if analysis.equal.epoch else ""
    parts += [f"{analysis.equal.note.capitalize()}{later}."] if analysis.equal.note else []
    if effects.interaction is not None:
        parts.append(
            f"The keys act together ({p_text(effects.interaction)}, F test of lack of fit): look at the picture."
        )
    if effects.shares:
        return [*parts, f"Share: the part of the variance of {analysis.metric} between points that the key explains."]
    return [*parts, f"Not ranked: {effects.lacking}."]


def shares_table(analysis: Analysis) -> Table:
    """Return the keys' shares with their intervals."""
    effects = analysis.effects
    lines = [[each.key, f"{each.share:.0%}", "{:.0%} to {:.0%}".format(*each.interval)] for each in effects.shares]
    return ["key", "share", f"95 % interval ({effects.interval})"], lines


def what_floors_are(analysis: Analysis) -> str:
    """Return a sentence on what the floors are."""
    named = [f"{row.name} is {MEANINGS[row.floor]}" for row in analysis.floors if row.floor in MEANINGS]
    return f"A floor is what the trials must beat: {'; '.join(named)}." if named else ""


def csv_text(analysis: Analysis) -> str:
    """Return the leaderboard with every metric as CSV.

    Means have the ends of their 95 % t intervals beside them; one seed has none.
    """
    names = [analysis.metric, *sorted({name for row in analysis.rows for name in row.others})]
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    heads = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    table.writerow(["rank", "trial", *analysis.varied, f"{analysis.metric}_std", "runs", "state", *heads])
    for rank, row in enumerate(analysis.rows, 1):
        numbers = [
            each for name in names for each in _interval({analysis.metric: row.values, **row.others}.get(name, ()))
        ]
        state = "floor" if row.floor else row.state
        table.writerow([rank, row.name, *_varied(row, analysis), row.std, len(row.runs), state, *numbers])
    return written.getvalue()


def _interval(values: Sequence[float]) -> list[float | None]:
    """Return the mean and the ends of its interval."""
    mean, half = (fmean(values) if values else None), margin(values)
    return [mean, None, None] if mean is None or half is None else [mean, mean - half, mean + half]


def runs_csv(analysis: Analysis, trials: Iterable[TrialResult]) -> str:
    """Return every run and metric as CSV.

    The lines are in the order of the leaderboard.
    """
    by_name = {trial.name: trial for trial in trials}
    ranked = [(row.name, by_name[name]) for row in analysis.rows for name in row.runs]
    metrics = ordered({name for _, trial in ranked for name in trial.metrics}, analysis.table)
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(["trial", *analysis.varied, "seed", "state", *metrics])
    for name, trial in ranked:
        params = [analysis.text(key, trial.params[key]) if key in trial.params else "" for key in analysis.varied]
        state = "floor" if trial.floor else trial.state
        table.writerow([name, *params, trial.seed, state, *(trial.metrics.get(metric, "") for metric in metrics)])
    return written.getvalue()


def leaderboard_table(analysis: Analysis) -> Table:
    """Return the leaderboard as text for people.

    Columns that would be empty or constant are left out.
    """
    measured = {name for row in analysis.rows for name in row.others}
    others = [name for name in headlines(analysis.table) if name != analysis.metric and name in measured]
    seeds = ["runs"] if any(len(row.runs) > 1 for row in analysis.rows) else []
    lines = []
    for rank, row in enumerate(analysis.rows, 1):
        count = [_count(row)] if seeds else []
        extra = [spread(row.others[name]) if name in row.others else "" for name in others]
        state = "floor" if row.floor else row.state
        measured = f"{row.measured} (no interval)" if seeds and len(row.values) == 1 else row.measured
        lines.append([str(rank), row.name, *_varied(row, analysis), measured, *count, *extra, state])
    return ["", "trial", *analysis.varied, analysis.metric, *seeds, *others, "state"], lines


def _count(row: Row) -> str:
    """Return how many runs measured it, of how many."""
    return str(len(row.runs)) if len(row.values) == len(row.runs) else f"{len(row.values)} of {len(row.runs)}"


def _varied(row: Row, analysis: Analysis) -> list[str]:
    return [analysis.text(key, row.params[key]) if key in row.params else "" for key in analysis.varied]


def effects_table(analysis: Analysis) -> Table:
    """Return each key's p-value and means."""
    lines = []
    for effect in analysis.effects.each:
        levels = ", ".join(
            f"{each.label}: {with_margin(each.mean, each.margin)} ({each.runs})" for each in effect.levels
        )
        p_value = "unknown" if effect.p_value is None else f"{effect.p_value:.2g}"
        lines.append([effect.key, p_value, levels])
    return ["key", "p (F test)", f"mean {analysis.metric} at its values (runs)"], lines


def _markdown_table(table: Table) -> str:
    head, lines = table
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)

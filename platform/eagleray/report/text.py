"""Report a sweep in words and tables.

A report is one sentence, a page of Markdown, or tables for spreadsheets.
"""

import csv
import io
from collections.abc import Iterable
from statistics import fmean

from eagleray.config.floors import MEANINGS
from eagleray.config.metrics import headlines, ordered
from eagleray.report.analysis import Analysis, Effect, Level, Row, TrialResult, number, param_text
from eagleray.report.variance import paired_t_test

SIGNIFICANT = 0.05  # a larger p-value is not significant

Table = tuple[list[str], list[list[str]]]  # the heads of the columns, and the rows


def finding(analysis: Analysis) -> str:
    """Return the finding of a sweep in one sentence.

    It claims no more than the numbers show.
    """
    if not analysis.tried:
        others = sorted({name for row in analysis.rows for name in row.metrics})
        measured = f"; they measured {', '.join(others)}" if others else ""
        return f"no trial measured {analysis.metric}{measured}."
    parts = [_what_matters(analysis) if analysis.effects else _no_choice(analysis), _against_floors(analysis)]
    return f"{'; '.join(filter(None, parts))}."


def _no_choice(analysis: Analysis) -> str:
    return f"only one point was measured, with {analysis.metric} {analysis.tried[0].measured}"


def _what_matters(analysis: Analysis) -> str:
    first, *rest = analysis.effects
    best, worst = _ends(first, analysis)
    ends = f"{analysis.metric} is {number(best.mean)} {best.place} and {number(worst.mean)} {worst.place}"
    if first.p_value is None:
        return f"{first.key}: {ends}, but with one run each a difference may be noise (set seeds=3)"
    tested = f"{_p_text(first.p_value)} ({analysis.test})"
    if first.p_value >= SIGNIFICANT:
        none = f"no key has a significant effect; the smallest p-value is that of {first.key}"
        return f"{none if rest else f'{first.key} has no significant effect'}: {ends} on average, {tested}"
    counts = f"(means of {len(best.values)} and {len(worst.values)})"
    others = [each for each in rest if each.p_value is not None and each.p_value < SIGNIFICANT]
    then = "".join(f", then {each.key} (best {_ends(each, analysis)[0].place})" for each in others)
    most = " most" if rest else ""
    return f"{first.key} matters{most}: {ends} {counts}, {tested}{then}"


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{3 if p_value < 0.1 else 2}f}"


def _against_floors(analysis: Analysis) -> str:
    """Compare the best trial with each floor.

    They are compared seed by seed: runs of one seed share their validation images.
    """
    best, sign = analysis.tried[0], 1 if analysis.mode == "max" else -1
    groups: dict[str, list[str]] = {"worse than": [], "not significantly different from": [], "better than": []}
    for floor in analysis.floors:
        gains = _paired(best, floor)
        p_value = paired_t_test(gains)
        tested = "" if p_value is None else f"; {_p_text(p_value)}, paired t test over {len(gains)} seeds"
        gain = sign * (fmean(gains) if gains else fmean(best.values) - fmean(floor.values))
        is_level = gain == 0 or (p_value is not None and p_value >= SIGNIFICANT)
        words = "not significantly different from" if is_level else "better than" if gain > 0 else "worse than"
        groups[words].append(f"{floor.name} ({floor.measured}{tested})")
    parts = [f"{words} {' and '.join(names)}" for words, names in groups.items() if names]
    return f"the best trial ({best.measured}) is {', '.join(parts)}" if parts else ""


def _paired(one: Row, other: Row) -> list[float]:
    """Return the metric's differences, seed by seed."""
    mine, its = (dict(zip(row.seeds, row.values, strict=True)) for row in (one, other))
    return [mine[seed] - its[seed] for seed in mine if seed in its and seed is not None]


def _ends(effect: Effect, analysis: Analysis) -> tuple[Level, Level]:
    ordered = sorted(effect.levels, key=lambda level: level.mean, reverse=analysis.mode == "max")
    return ordered[0], ordered[-1]


def on_test_set(analysis: Analysis) -> str:
    """Return the winner's metrics on the test set.

    Nothing was chosen on it. The metrics of the floors are added.
    """
    winner = analysis.winner
    names = sorted(name for name in winner.metrics if name.startswith("test_")) if winner else []
    parts = []
    for name in names:
        floors = [f"{row.name} {number(row.metrics[name])}" for row in analysis.floors if name in row.metrics]
        compared = f" ({', '.join(floors)})" if floors else ""
        parts.append(f"{name} {number(winner.metrics[name])}{compared}" if winner else "")
    return f"The winner ({winner.name}) on the test set: {', '.join(parts)}." if winner and parts else ""


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
    parts += [f"![{analysis.metric} by what was varied]({picture})"] if picture else []
    parts += ["## Leaderboard", _markdown_table(leaderboard_table(analysis)), _what_floors_are(analysis)]
    parts += ["\n".join(f"- {note}" for note in notes), on_test_set(analysis)]
    if analysis.effects:
        parts += ["## What made the difference", _markdown_table(_effects_table(analysis))]
        parts += [
            f"Share: the part of the variance of {analysis.metric} that this key explains in addition to the others. "
            f"p: the probability of such a large share if the key had no effect ({analysis.test})."
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _what_floors_are(analysis: Analysis) -> str:
    named = [f"{row.name} is {MEANINGS[row.floor]}" for row in analysis.floors if row.floor in MEANINGS]
    return f"A floor is what the trials must beat: {'; '.join(named)}." if named else ""


def csv_text(analysis: Analysis) -> str:
    """Return the leaderboard with every metric as CSV."""
    others = sorted({name for row in analysis.rows for name in row.metrics})
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    head = ["rank", "trial", *analysis.varied, analysis.metric, f"{analysis.metric}_std", "runs", "state"]
    table.writerow([*head, *others])
    for rank, row in enumerate(analysis.rows, 1):
        numbers = [row.metrics.get(name, "") for name in others]
        state = "floor" if row.floor else row.state
        table.writerow([rank, row.name, *_varied(row, analysis), row.mean, row.std, len(row.runs), state, *numbers])
    return written.getvalue()


def runs_csv(analysis: Analysis, trials: Iterable[TrialResult]) -> str:
    """Return every run and metric as CSV.

    The lines are in the order of the leaderboard.
    """
    by_name = {trial.name: trial for trial in trials}
    ranked = [by_name[name] for row in analysis.rows for name in row.runs]
    metrics = ordered({name for trial in ranked for name in trial.metrics}, analysis.table)
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(["trial", *analysis.varied, "seed", "state", *metrics])
    for trial in ranked:
        params = [param_text(trial.params[key]) if key in trial.params else "" for key in analysis.varied]
        state = "floor" if trial.floor else trial.state
        table.writerow([trial.label, *params, trial.seed, state, *(trial.metrics.get(name, "") for name in metrics)])
    return written.getvalue()


def leaderboard_table(analysis: Analysis) -> Table:
    """Return the leaderboard as text for people.

    Columns that would be empty or constant are left out.
    """
    measured = {name for row in analysis.rows for name in row.metrics}
    others = [name for name in headlines(analysis.table) if name != analysis.metric and name in measured]
    seeds = ["runs"] if any(len(row.runs) > 1 for row in analysis.rows) else []
    lines = []
    for rank, row in enumerate(analysis.rows, 1):
        count = [str(len(row.runs))] if seeds else []
        extra = [number(row.metrics[name]) if name in row.metrics else "" for name in others]
        state = "floor" if row.floor else row.state
        lines.append([str(rank), row.name, *_varied(row, analysis), row.measured, *count, *extra, state])
    return ["", "trial", *analysis.varied, analysis.metric, *seeds, *others, "state"], lines


def _varied(row: Row, analysis: Analysis) -> list[str]:
    return [param_text(row.params[key]) if key in row.params else "" for key in analysis.varied]


def _effects_table(analysis: Analysis) -> Table:
    lines = []
    for effect in analysis.effects:
        levels = ", ".join(f"{level.label}: {number(level.mean)} ({len(level.values)})" for level in effect.levels)
        p_value = "unknown" if effect.p_value is None else f"{effect.p_value:.2g}"
        lines.append([effect.key, f"{effect.share:.0%}", p_value, levels])
    return ["key", "share", "p (F test)", f"mean {analysis.metric} at its values (how many)"], lines


def _markdown_table(table: Table) -> str:
    head, lines = table
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)

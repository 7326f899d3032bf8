"""What a sweep found, in words: one sentence, a page of Markdown, a table for spreadsheets."""

import csv
import io
from collections.abc import Iterable
from statistics import fmean

from eagleray.config.floors import MEANINGS
from eagleray.config.metrics import headlines, ordered
from eagleray.report.analysis import Analysis, Effect, Level, Row, TrialResult, number, param_text
from eagleray.report.variance import paired_t_test

SURE = 0.05  # a difference that noise makes more often than this is none

Table = tuple[list[str], list[list[str]]]  # the heads of the columns, and the lines


def finding(found: Analysis) -> str:
    """What a sweep found, in one sentence that claims no more than the numbers hold."""
    if not found.tried:
        others = sorted({name for row in found.rows for name in row.metrics})
        there = f"; they measured {', '.join(others)}" if others else ""
        return f"no trial measured {found.metric}{there}."
    parts = [_what_matters(found) if found.effects else _no_choice(found), _against_floors(found)]
    return f"{'; '.join(filter(None, parts))}."


def _no_choice(found: Analysis) -> str:
    return f"only one point was measured, with {found.metric} {found.tried[0].measured}"


def _what_matters(found: Analysis) -> str:
    first, *rest = found.effects
    best, worst = _ends(first, found)
    ends = f"{found.metric} is {number(best.mean)} {best.place} and {number(worst.mean)} {worst.place}"
    if first.p_value is None:
        return f"{first.key}: {ends}, but one run each cannot tell a difference from noise (seeds=3 could)"
    tested = f"{_p_text(first.p_value)} ({found.test})"
    if first.p_value >= SURE:
        none = f"no key has a significant effect; the smallest p-value is that of {first.key}"
        return f"{none if rest else f'{first.key} has no significant effect'}: {ends} on average, {tested}"
    counts = f"(means of {len(best.values)} and {len(worst.values)})"
    others = [each for each in rest if each.p_value is not None and each.p_value < SURE]
    then = "".join(f", then {each.key} (best {_ends(each, found)[0].place})" for each in others)
    most = " most" if rest else ""
    return f"{first.key} matters{most}: {ends} {counts}, {tested}{then}"


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{3 if p_value < 0.1 else 2}f}"


def _against_floors(found: Analysis) -> str:
    """The best trial beside each floor; runs of one seed share their validation images, so they are compared first."""
    best, sign = found.tried[0], 1 if found.mode == "max" else -1
    groups: dict[str, list[str]] = {"worse than": [], "not significantly different from": [], "better than": []}
    for floor in found.floors:
        gains = _paired(best, floor)
        p_value = paired_t_test(gains)
        tested = "" if p_value is None else f"; {_p_text(p_value)}, paired t test over {len(gains)} seeds"
        gain = sign * (fmean(gains) if gains else fmean(best.values) - fmean(floor.values))
        is_level = gain == 0 or (p_value is not None and p_value >= SURE)
        words = "not significantly different from" if is_level else "better than" if gain > 0 else "worse than"
        groups[words].append(f"{floor.name} ({floor.measured}{tested})")
    parts = [f"{words} {' and '.join(names)}" for words, names in groups.items() if names]
    return f"the best trial ({best.measured}) is {', '.join(parts)}" if parts else ""


def _paired(one: Row, other: Row) -> list[float]:
    """Differences of the metric between runs of equal seeds."""
    mine, its = (dict(zip(row.seeds, row.values, strict=True)) for row in (one, other))
    return [mine[seed] - its[seed] for seed in mine if seed in its and seed is not None]


def _ends(effect: Effect, found: Analysis) -> tuple[Level, Level]:
    ordered = sorted(effect.levels, key=lambda level: level.mean, reverse=found.mode == "max")
    return ordered[0], ordered[-1]


def on_test_part(found: Analysis) -> str:
    """What the winner is worth on the test part, which nothing was chosen on, beside the floors; or nothing."""
    winner = found.winner
    names = sorted(name for name in winner.metrics if name.startswith("test_")) if winner else []
    parts = []
    for name in names:
        floors = [f"{row.name} {number(row.metrics[name])}" for row in found.floors if name in row.metrics]
        beside = f" ({', '.join(floors)})" if floors else ""
        parts.append(f"{name} {number(winner.metrics[name])}{beside}" if winner else "")
    return f"The winner ({winner.name}) on the test part: {', '.join(parts)}." if winner and parts else ""


def markdown(found: Analysis, *, name: str, question: str, picture: str | None, notes: Iterable[str]) -> str:
    """The page on a sweep.

    Args:
        found: what it found.
        name: its title.
        question: what it was to answer.
        picture: the heat map's file name, if one was drawn.
        notes: what else a reader must know: what failed, what was stopped.
    """
    parts = [f"# {name}", question, f"**{finding(found)}**"]
    parts += [f"![{found.metric} by what was varied]({picture})"] if picture else []
    parts += ["## Leaderboard", _markdown_table(leaderboard_table(found)), _what_floors_are(found)]
    parts += ["\n".join(f"- {note}" for note in notes), on_test_part(found)]
    if found.effects:
        parts += ["## What made the difference", _markdown_table(_effects_table(found))]
        parts += [
            f"Share: the part of the variance of {found.metric} that this key explains beyond the others. "
            f"p: the probability of a share as large if the key had no effect ({found.test})."
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _what_floors_are(found: Analysis) -> str:
    named = [f"{row.name} is {MEANINGS[row.floor]}" for row in found.floors if row.floor in MEANINGS]
    return f"A floor is what the trials must beat: {'; '.join(named)}." if named else ""


def csv_text(found: Analysis) -> str:
    """The leaderboard with every metric, for spreadsheets."""
    others = sorted({name for row in found.rows for name in row.metrics})
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    head = ["rank", "trial", *found.varied, found.metric, f"{found.metric}_std", "runs", "state"]
    table.writerow([*head, *others])
    for rank, row in enumerate(found.rows, 1):
        numbers = [row.metrics.get(name, "") for name in others]
        state = "floor" if row.floor else row.state
        table.writerow([rank, row.name, *_varied(row, found), row.mean, row.std, len(row.runs), state, *numbers])
    return written.getvalue()


def runs_csv(found: Analysis, trials: Iterable[TrialResult]) -> str:
    """Return every run and seed as a line of its own, in the order of the leaderboard, with every metric."""
    by_name = {trial.name: trial for trial in trials}
    ranked = [by_name[name] for row in found.rows for name in row.runs]
    metrics = ordered({name for trial in ranked for name in trial.metrics}, found.table)
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(["trial", *found.varied, "seed", "state", *metrics])
    for trial in ranked:
        params = [param_text(trial.params[key]) if key in trial.params else "" for key in found.varied]
        state = "floor" if trial.floor else trial.state
        table.writerow([trial.label, *params, trial.seed, state, *(trial.metrics.get(name, "") for name in metrics)])
    return written.getvalue()


def leaderboard_table(found: Analysis) -> Table:
    """The leaderboard as people want to see it; a column that would say nothing is left out."""
    measured = {name for row in found.rows for name in row.metrics}
    others = [name for name in headlines(found.table) if name != found.metric and name in measured]
    seeds = ["runs"] if any(len(row.runs) > 1 for row in found.rows) else []
    lines = []
    for rank, row in enumerate(found.rows, 1):
        count = [str(len(row.runs))] if seeds else []
        extra = [number(row.metrics[name]) if name in row.metrics else "" for name in others]
        state = "floor" if row.floor else row.state
        lines.append([str(rank), row.name, *_varied(row, found), row.measured, *count, *extra, state])
    return ["", "trial", *found.varied, found.metric, *seeds, *others, "state"], lines


def _varied(row: Row, found: Analysis) -> list[str]:
    return [param_text(row.params[key]) if key in row.params else "" for key in found.varied]


def _effects_table(found: Analysis) -> Table:
    lines = []
    for effect in found.effects:
        levels = ", ".join(f"{level.label}: {number(level.mean)} ({len(level.values)})" for level in effect.levels)
        p_value = "unknown" if effect.p_value is None else f"{effect.p_value:.2g}"
        lines.append([effect.key, f"{effect.share:.0%}", p_value, levels])
    return ["key", "share", "p (F test)", f"mean {found.metric} at its values (how many)"], lines


def _markdown_table(table: Table) -> str:
    head, lines = table
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)

"""What a sweep found, in words: one sentence, a page of Markdown, a table for spreadsheets."""

import csv
import io
from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import fmean

from eagleray.config.metrics import headlines
from eagleray.report.analysis import Answer, Effect, Level, Row, number, shown

SURE = 0.05  # a difference that noise makes more often than this is none

Table = tuple[list[str], list[list[str]]]  # the heads of the columns, and the lines


def finding(found: Answer) -> str:
    """What a sweep found, in one sentence that claims no more than the numbers hold."""
    if not found.tried:
        others = sorted({name for row in found.rows for name in row.metrics})
        there = f"; they measured {', '.join(others)}" if others else ""
        return f"no trial measured {found.metric}{there}."
    parts = [_what_matters(found) if found.effects else _no_choice(found), _against_floors(found)]
    return f"{'; '.join(filter(None, parts))}."


def _no_choice(found: Answer) -> str:
    return f"only one point was measured, with {found.metric} {found.tried[0].measured}"


def _what_matters(found: Answer) -> str:
    first, *rest = found.effects
    best, worst = _ends(first, found)
    ends = f"{found.metric} is {number(best.mean)} {best.place} and {number(worst.mean)} {worst.place}"
    if first.chance is None:
        return (
            f"of {first.key}, {best.label} did best ({found.metric} {number(best.mean)}) and {worst.label} worst "
            f"({number(worst.mean)}), but one run each cannot tell a difference from noise (seeds=3 could)"
        )
    tests = len(found.effects)  # the more keys are looked at, the sooner one of them looks good by chance
    if first.chance * tests >= SURE:
        by_chance = f"{min(1.0, first.chance * tests):.0%}"
        return (
            f"no setting stands out from noise: {first.key} comes nearest ({ends} on average), "
            f"and chance alone does as much in {by_chance} of such sweeps"
        )
    counts = f"(means of {len(best.values)} and {len(worst.values)})"
    sure = [each for each in rest if each.chance is not None and each.chance * tests < SURE]
    then = "".join(f", then {each.key} (best {_ends(each, found)[0].place})" for each in sure)
    return f"{first.key} matters{' most' if rest else ''}: {ends} {counts}{then}"


def _against_floors(found: Answer) -> str:
    best = found.tried[0]
    above = [row for row in found.floors if _better(row, best, found) and not _level(row, best)]
    level = [row for row in found.floors if _level(row, best)]
    below = [row for row in found.floors if row not in above and row not in level]
    if above:
        others = [*level, *below]
        rest = f", {_named(others)} did not" if others else ""
        return f"{_named(above)} did better than every trial (best {best.measured}){rest}"
    same = f" is level with {_named(level)}" if level else ""
    beats = f" beats {_named(below)}" if below else ""
    return f"the best trial ({best.measured}){' and'.join(filter(None, [same, beats]))}" if same or beats else ""


def _better(one: Row, other: Row, found: Answer) -> bool:
    difference = fmean(one.values) - fmean(other.values)
    return difference >= 0 if found.mode == "max" else difference <= 0


def _level(floor: Row, best: Row) -> bool:
    """Whether the seeds of the best point scatter too much to tell it from a floor."""
    if best.std is None:
        return False
    return abs(fmean(best.values) - fmean(floor.values)) <= 2 * best.std / sqrt(len(best.values))


def _named(rows: Sequence[Row]) -> str:
    return " and ".join(f"{row.name} ({row.measured})" for row in rows)


def _ends(effect: Effect, found: Answer) -> tuple[Level, Level]:
    ordered = sorted(effect.levels, key=lambda level: level.mean, reverse=found.mode == "max")
    return ordered[0], ordered[-1]


def on_test_part(found: Answer) -> str:
    """What the winner is worth on the test part, which nothing was chosen on, beside the floors; or nothing."""
    winner = found.winner
    names = sorted(name for name in winner.metrics if name.startswith("test_")) if winner else []
    parts = []
    for name in names:
        floors = [f"{row.name} {number(row.metrics[name])}" for row in found.floors if name in row.metrics]
        beside = f" ({', '.join(floors)})" if floors else ""
        parts.append(f"{name} {number(winner.metrics[name])}{beside}" if winner else "")
    return f"The winner ({winner.name}) on the test part: {', '.join(parts)}." if winner and parts else ""


def markdown(found: Answer, *, name: str, question: str, picture: str | None, notes: Iterable[str]) -> str:
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
    parts += ["## Leaderboard", _markdown_table(leaderboard_table(found))]
    parts += ["\n".join(f"- {note}" for note in notes), on_test_part(found)]
    if found.effects:
        parts += ["## What made the difference", _markdown_table(_effects_table(found))]
        parts += [
            f"Share: of the variance of {found.metric}, what this key explains beyond the others. "
            "Chance: how often noise alone makes so much."
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def csv_text(found: Answer) -> str:
    """The leaderboard with every metric, for spreadsheets."""
    others = sorted({name for row in found.rows for name in row.metrics})
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    head = ["rank", "trial", *found.varied, found.metric, f"{found.metric}_std", "runs", "state"]
    table.writerow([*head, *others])
    for rank, row in enumerate(found.rows, 1):
        numbers = [row.metrics.get(name, "") for name in others]
        state = "floor" if row.is_floor else row.state
        table.writerow([rank, row.name, *_varied(row, found), row.mean, row.std, row.runs, state, *numbers])
    return written.getvalue()


def leaderboard_table(found: Answer) -> Table:
    """The leaderboard as people want to see it; a column that would say nothing is left out."""
    measured = {name for row in found.rows for name in row.metrics}
    others = [name for name in headlines(found.table) if name != found.metric and name in measured]
    seeds = ["runs"] if any(row.runs > 1 for row in found.rows) else []
    lines = []
    for rank, row in enumerate(found.rows, 1):
        count = [str(row.runs)] if seeds else []
        extra = [number(row.metrics[name]) if name in row.metrics else "" for name in others]
        state = "floor" if row.is_floor else row.state
        lines.append([str(rank), row.name, *_varied(row, found), row.measured, *count, *extra, state])
    return ["", "trial", *found.varied, found.metric, *seeds, *others, "state"], lines


def _varied(row: Row, found: Answer) -> list[str]:
    return [shown(row.params[key]) if key in row.params else "" for key in found.varied]


def _effects_table(found: Answer) -> Table:
    lines = []
    for effect in found.effects:
        levels = ", ".join(f"{level.label}: {number(level.mean)} ({len(level.values)})" for level in effect.levels)
        chance = "unknown" if effect.chance is None else f"{effect.chance:.2g}"
        lines.append([effect.key, f"{effect.share:.0%}", chance, levels])
    return ["key", "share", "chance", f"mean {found.metric} at its values (how many)"], lines


def _markdown_table(table: Table) -> str:
    head, lines = table
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)

"""A sweep's report as one HTML file.

It opens offline: pictures are inside, there is no script, and a policy in its head forbids everything else. All text is
escaped, because names, values and questions are the user's.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eagleray.report.analysis import Analysis
from eagleray.report.drawing import interval_bars, parallel_coordinates
from eagleray.report.finding import finding
from eagleray.report.numbers import param_text
from eagleray.report.text import (
    Table,
    effects_table,
    how_effects_are,
    leaderboard_table,
    on_test_set,
    shares_table,
    what_floors_are,
    what_intervals_are,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #5b6675; --ground: #fff; --line: #d7dce3; --card: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --quiet: #a3adba; --ground: #14181f; --line: #39424f; --card: #1d232c; }
}
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.2rem; }
.question { color: var(--quiet); font-size: 1.1rem; margin: .2rem 0 1rem; }
.finding { background: var(--card); border-left: 4px solid #1f9e89; padding: .8rem 1rem; margin: 0; }
.scroll { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.long { white-space: normal; }
tr.floor td { color: var(--quiet); font-style: italic; } p.quiet { color: var(--quiet); }
svg.wide { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: currentColor; paint-order: stroke; stroke: var(--ground); stroke-width: 4px; }
svg text.name { font-weight: 600; }
svg line.axis { stroke: var(--quiet); } svg polyline { fill: none; stroke-width: 1.6; opacity: .75; }
svg polyline.best { stroke-width: 4; opacity: 1; }
svg.bar line { stroke: #3f6fb5; stroke-width: 2; } svg.bar circle { fill: #3f6fb5; }
svg.bar.floor line { stroke: var(--quiet); } svg.bar.floor circle { fill: var(--quiet); }
figure { margin: 0 0 1.2rem; } figcaption { color: var(--quiet); }
img { max-width: 100%; background: #fff; border-radius: 4px; }
"""


def page(
    analysis: Analysis,
    *,
    name: str,
    question: str,
    notes: Iterable[str] = (),
    pictures: Mapping[str, Path] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the report of a sweep as an HTML page.

    Args:
        analysis: of the sweep.
        name: the title.
        question: that the sweep was to answer.
        notes: other facts for the reader: what failed, what was left out.
        pictures: caption -> a PNG file, which becomes part of the page.
        settings: of the sweep, and those that all its trials share.
    """
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="question">{escape(question)}</p>' if question else "",
        f'<p class="finding">{escape(finding(analysis))}</p>',
        section("Leaderboard", _leaderboard(analysis), what_intervals_are(analysis), what_floors_are(analysis)),
        section("On the test set", _paragraph(on_test_set(analysis))),
        section("Notes", _list(notes)),
        section("Every point", parallel_coordinates(analysis)),
        _effects(analysis),
        section("Pictures", "".join(figure(caption, path) for caption, path in (pictures or {}).items())),
        section("Settings", _settings(settings or {})),
    ]
    return document(name, parts)


def document(title: str, parts: Iterable[str]) -> str:
    """Return a page that opens offline.

    Args:
        title: of the window.
        parts: HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str, *explained: str) -> str:
    """Return a section; nothing if it has no content."""
    if not content:
        return ""
    after = "".join(f'<p class="quiet">{escape(text)}</p>' for text in explained if text)
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}{after}\n</section>"


def _leaderboard(analysis: Analysis) -> str:
    heads, lines = leaderboard_table(analysis)
    place = heads.index(analysis.metric) + 1
    cells = [[escape(cell) for cell in line] for line in lines]
    for line, bar in zip(cells, interval_bars(analysis), strict=True):
        line.insert(place, bar)
    heads = [escape(head or "rank") for head in heads]
    return _table(
        [*heads[:place], "95 % interval", *heads[place:]],
        cells,
        ["floor" if row.floor else "trial" for row in analysis.rows],
    )


def _effects(analysis: Analysis) -> str:
    if not analysis.effects.each:
        return ""
    tables = _escaped_table(effects_table(analysis))
    tables += _escaped_table(shares_table(analysis)) if analysis.effects.shares else ""
    return section("What made the difference", tables, *how_effects_are(analysis))


def _settings(settings: Mapping[str, Any]) -> str:
    lines = [[key, param_text(value)] for key, value in settings.items()]
    return _escaped_table((["setting", "value"], lines)) if lines else ""


def _escaped_table(table: Table) -> str:
    heads, lines = table
    return _table([escape(head) for head in heads], [[escape(cell) for cell in line] for line in lines])


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    rows = [
        f'<tr class="{kind}">{"".join(map(_cell, line))}</tr>'
        for line, kind in zip(lines, classes or ["trial"] * len(lines), strict=True)
    ]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(content: str) -> str:
    return f'<td class="long">{content}</td>' if len(content) > 60 and "<" not in content else f"<td>{content}</td>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _list(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def figure(caption: str, path: Path) -> str:
    """Return a PNG file as a part of a page."""
    data = b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'

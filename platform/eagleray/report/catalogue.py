"""The pages of all methods and all metrics, made from what files declare and from the runs of sweeps.

python -m eagleray.report.catalogue RUNS.csv ... > docs/methods.md
python -m eagleray.report.catalogue --metrics > docs/metrics.md
"""

import csv
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic.fields import FieldInfo

from eagleray.config.metrics import Table, headlines, shipped
from eagleray.config.registry import Declaration, declared
from eagleray.config.sections import evaluator_settings
from eagleray.contracts.metric import LOOP
from eagleray.contracts.ranges import Choice, LogUniform, Range
from eagleray.contracts.recipe import Recipe, Recipes

NUMBERS = headlines(shipped())
METRICS = ("metric", "meaning", "better", "needs")
SETTINGS = ("setting", "recipe=paper", "recipe=small", "range", "meaning")
Reached = Mapping[str, Mapping[str, float]]  # method -> metric -> mean over seeds


def page(reached: Reached) -> str:
    """The whole page in Markdown."""
    methods = list(declared("method").values())
    head = ["method", "what it is", "paper", "needs", *NUMBERS]
    rows = [
        [f"[{m.name}](#{m.name})", m.summary, _paper(m), _needs(m), *_numbers(reached.get(m.name, {}))] for m in methods
    ]
    return "\n".join([
        "# Methods",
        "",
        "Made by `make docs` from the methods' own files and the runs in `docs/results`; a test compares. The",
        "numbers are means over seeds on validation, ten epochs on 10,000 images of CIFAR-10 (docs/results.md).",
        "",
        *_table(head, rows),
        *(line for method in methods for line in _section(method)),
        "",
    ])  # fmt: skip


def metrics_page() -> str:
    """The page of all metrics in Markdown."""
    evaluators, methods = declared("evaluator").values(), declared("method").values()
    own = [[m.name, f"`{name}`", text] for m in methods for name, text in m.values["metrics"].items()]
    return "\n".join([
        "# Metrics",
        "",
        "Made by `make docs` from what the loop, the evaluators and the methods declare; a test compares. Any of them",
        "may be a sweep's `metric`. What needs labels is measured on the test part too, as `test_…`.",
        "",
        *_table(METRICS, _metric_lines(LOOP)),
        *(line for one in evaluators for line in _evaluator_section(one)),
        "",
        "## of methods",
        "",
        "What a method reports of its own steps; a sweep by one of them says its `mode`.",
        "",
        *_table(["method", "metric", "meaning"], own),
        "",
    ])  # fmt: skip


def metrics(table: Table) -> list[list[str]]:
    """The lines under `METRICS`."""
    return [
        [name, metric.meaning, metric.better or "", ", ".join(sorted(metric.needs)).replace("_", " ")]
        for name, metric in table.items()
    ]


def settings(one: Declaration) -> list[list[str]]:
    """The lines under `SETTINGS`: the small recipe's value where it is another, and the range that a sweep may take."""
    small = one.values["recipes"].small_settings if one.kind == "method" else {}
    section, model = one.kind, one.Config
    if one.kind == "evaluator":
        name = one.name.rpartition(".")[2]
        section, model = f"evaluate.{name}", evaluator_settings(one)
    return [
        [
            f"{section}.{key}",
            "needed" if field.is_required() else _shown(field.default),
            _shown(small[key]) if key in small else "",
            _range(field),
            field.description or "",
        ]
        for key, field in model.model_fields.items()
    ]


def recipes(method: Declaration) -> dict[str, str]:
    """How it is trained under either recipe: the optimizer and what differs from its defaults."""
    both: Recipes = method.values["recipes"]
    return {"recipe=small": _recipe(both.small), "recipe=paper": _recipe(both.paper)}


def read_runs(files: Iterable[Path]) -> dict[str, dict[str, float]]:
    """Return the means over seeds of each method's best point, from the `runs.csv` of sweeps over methods."""
    points: dict[str, list[dict[str, str]]] = {}
    for file in files:
        with open(file, newline="", encoding="utf-8") as text:
            for row in csv.DictReader(text):
                point = row.get("run") or row.get("method.name")
                if point and row.get("state") == "finished":
                    points.setdefault(point, []).append(row)
    reached: dict[str, dict[str, float]] = {}
    for point, rows in points.items():
        means = {
            name: fmean(float(row[name]) for row in rows) for name in NUMBERS if all(row.get(name) for row in rows)
        }
        reached.setdefault(point.split()[0], means)
    return reached


def _section(method: Declaration) -> Iterator[str]:
    about = inspect.cleandoc(method.about).partition("\n")[2].strip()
    yield from ("", f"## {method.name}", "", method.doc.strip().partition("\n")[0], "", about)
    if rows := [[*map(_code, line[:3]), *line[3:]] for line in settings(method)]:
        yield from ("", *_table(SETTINGS, rows))
    yield from ("", *(f"- `{name}`: {recipe}" for name, recipe in recipes(method).items()))


def _evaluator_section(one: Declaration) -> Iterator[str]:
    about = inspect.cleandoc(one.about).partition("\n")[2].strip()
    yield from ("", f"## {one.name}", "", one.summary, "")
    yield from (about, "") if about else ()
    yield from _table(METRICS, _metric_lines(one.values["metrics"]))
    yield from ("", *(f"- `{key}` ({default}): {meaning}" for key, default, *_, meaning in settings(one)))


def _metric_lines(table: Table) -> list[list[str]]:
    return [[_code(name), *rest] for name, *rest in metrics(table)]


def _table(head: Sequence[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in lines]


def _paper(method: Declaration) -> str:
    link = re.search(r"https?://[^\s,)]+", method.about)
    if link is None:
        return ""
    address = link[0].rstrip(".")
    return f"[{address.rpartition('/')[2]}]({address})"


def _needs(method: Declaration) -> str:
    tokens = ["a ViT"] if "tokens" in method.needs else []
    labels = ["a few labels"] if method.needs & {"labels", "only_labels"} else []
    run = ["a trained run"] if method.needs_run else []
    return ", ".join(tokens + labels + run)


def _numbers(numbers: Mapping[str, float]) -> list[str]:
    return [f"{numbers[name]:.3f}" if name in numbers else "" for name in NUMBERS]


def _range(field: FieldInfo) -> str:
    span = next((mark for mark in field.metadata if isinstance(mark, Range)), None)
    if span is None:
        return ""
    if isinstance(span, Choice):
        return ", ".join(map(_shown, span.values))
    return f"{span.low:g} to {span.high:g}{', by factors' if isinstance(span, LogUniform) else ''}"


def _shown(value: Any) -> str:
    """A value as it is typed."""
    return value if isinstance(value, str) else json.dumps(value)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _recipe(recipe: Recipe) -> str:
    given = recipe.model_dump(exclude_defaults=True)
    return ", ".join(
        [recipe.name, f"lr {recipe.lr:g}", *(f"{k} {_shown(v)}" for k, v in given.items() if k not in ("name", "lr"))]
    )


if __name__ == "__main__":
    is_metrics = sys.argv[1:] == ["--metrics"]
    sys.stdout.write(metrics_page() if is_metrics else page(read_runs(map(Path, sys.argv[1:]))))

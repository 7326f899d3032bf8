"""Make the tables of docs/results.md and docs/race.md from the rows in docs/results.

    python benchmarks/tables.py          # fills in the tables, each after its line `<!-- table: NAME -->`

Every figure is a mean over the seeds of one CSV, whose rows are runs; in brackets stand the single runs, by seed. The
line below a table gives the half width of a 95 % interval (Student's t): the standard deviation of what is left of all
its runs when their setting and their seed are taken out, for the difference of two settings with the same seeds.
"""

import argparse
import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.stats import t

from eagleray.config.registry import declared

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (DOCS / "results.md", DOCS / "race.md")
Row = dict[str, str]

MANY = 8  # methods, over which a mean is worth an interval
VIT = " vit_tiny depth=4 dim=128"  # after a method's name, where it is not the convnet

# column of propagated_guesses.csv: its title
GUESSES = {
    "graph": "spread label right",
    "network": "guess right",
    "graph_by_certainty": "spread label, by certainty",
    "network_by_certainty": "guess, by certainty",
    "differ": "they differ",
    "graph_where_they_differ": "there: spread label right",
    "network_where_they_differ": "there: guess right",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str, tables: Mapping[str, Callable[[], str]] | None = None) -> str:
    """Return a page with its tables made again."""
    known = TABLES if tables is None else tables

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{known[match[1]]()}\n\n"

    return re.sub(r"<!-- table: (\w+) -->\n(?:[|*±].*\n|\n(?=±))*\n", table, page)


def methods() -> str:
    """Make the table of all methods, by family, the best first, then of the floors."""
    rows = read("methods")
    families = {one.name: one.summary.partition(":")[0].lower() for one in declared("method").values()}
    trained, floors = ([row for row in rows if (row["state"] == "floor") == is_floor] for is_floor in (False, True))
    runs = {run: [row for row in trained if row["run"] == run] for run in dict.fromkeys(row["run"] for row in trained)}
    lines = []
    for run in sorted(runs, key=lambda run: (families[run.split()[0]], -average(runs[run], "linear"))):
        own = runs[run]
        shown = run.replace(" per_class=40", "").replace(" ratio=3", "").replace(VIT, " (ViT)")
        quarters = [mean(own, f"stage_{quarter}", ".2f").removeprefix("0") for quarter in range(1, 5)]
        lines.append([
            *(families[run.split()[0]], shown, cell(own, "linear"), cell(own, "knn"), " ".join(quarters).strip()),
            mean(own, "z_rank", ".0f"),
        ])  # fmt: skip
    for floor in dict.fromkeys(row["trial"] for row in floors):
        own = [row for row in floors if row["trial"] == floor]
        lines.append(["*floor*", f"*{floor}*", cell(own, "linear"), cell(own, "knn"), "", ""])
    head = ("family", "method", "linear", "kNN", "linear after each quarter", "z_rank")
    return markdown(head, lines) + below(trained, "run", ("linear", "knn"))


def beside(ours: Sequence[Row], others: Sequence[Row], title: str, *, chosen: bool = False) -> str:
    """Make the table of methods of ours and of what stands beside them, with the seeds that both have.

    The difference is ours minus theirs, paired by seed, with its interval; below, that of the mean over many methods,
    unless these were `chosen` for their results.
    """
    lines, gains = [], {"linear": [], "knn": []}
    for method in dict.fromkeys(row["method"] for row in others):
        side = [row for row in others if row["method"] == method]
        here = [row for row in ours if row["run"].removesuffix(VIT) == method]
        line = [method]
        for metric, means in gains.items():
            values = [{row["seed"]: float(row[metric]) for row in rows} for rows in (here, side)]
            both = sorted(values[0].keys() & values[1].keys())
            differences = [values[0][seed] - values[1][seed] for seed in both]
            line += [
                cell([row for row in here if row["seed"] in both], metric),
                cell([row for row in side if row["seed"] in both or not here], metric),
                interval(differences),
            ]
            means += [fmean(differences)] if differences else []
        lines.append(line)
    head = ["method", "linear", title, "difference", "kNN", title, "difference"]
    over_methods = ", ".join(f"{metric} {interval(means)}" for metric, means in gains.items())
    has_mean = len(lines) >= MANY and not chosen
    below_it = f"\n\n± of the difference's mean over the methods, 95 %: {over_methods}" if has_mean else ""
    return markdown(head, lines) + below_it


def epochs() -> str:
    """Make the table of methods with thirty epochs, beside their ten."""
    more = read("epochs")
    names = {row["run"] for row in more}
    ten = [{**row, "method": row["run"].removesuffix(VIT)} for row in read("methods") if row["run"] in names]
    return beside(more, ten, "ten epochs", chosen=True)


def targets() -> str:
    """Make the table of what the targets of methods consist of, before training and after."""
    rows = [{**row, "run": f"{row['method']}, {row['epochs']} epochs"} for row in read("targets")]
    return points(rows, ("constant", "place", "image", "patch"))


def dictionaries() -> str:
    """Make the table of dictionaries and ways to code with them."""
    rows = read("dictionaries")
    return crossed(rows, "dictionary", "code", {row["code"]: row["code"] for row in rows}, "dictionary")


def interval(values: Sequence[float]) -> str:
    """Return the mean and the half width of its 95 % interval, Student's t; one value has none."""
    if len(values) < 2:
        return "".join(f"{value:+.3f}" for value in values)
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{round(fmean(values), 3) + 0.0:+.3f} ± {half:.3f}"  # + 0.0: there is no -0.000


def points(rows: Sequence[Row], metrics: Sequence[str], key: str = "run", head: Sequence[str] | None = None) -> str:
    """Make a table with a line for each value of `key`."""
    has_collapsed = any(row.get("state") == "collapsed" for row in rows)
    lines = []
    for value in dict.fromkeys(row[key] for row in rows):
        own = [row for row in rows if row[key] == value]
        states = [f"{sum(row['state'] == 'collapsed' for row in own)} of {len(own)}"] if has_collapsed else []
        lines.append([value, *(cell(own, metric) for metric in metrics), *states])
    columns = head or [key, *metrics, *(["collapsed"] if has_collapsed else [])]
    return markdown(columns, lines) + below(rows, key, [metric for metric in metrics if metric != "z_rank"])


def shipped(name: str, *keys: str) -> str:
    """Make the table of a sweep of `sweeps/` on the images it names, with its floors; `keys`: if not of whole runs."""
    rows = read(name)
    trained = [row for row in rows if row["state"] != "floor"]
    trained = named(trained, *keys) if keys else trained
    floors = [{**row, "run": f"*{row['trial']}*"} for row in rows if row["state"] == "floor"]
    lines = []
    for run in dict.fromkeys(row["run"] for row in [*trained, *floors]):
        own = [row for row in [*trained, *floors] if row["run"] == run]
        lines.append([run, cell(own, "linear"), cell(own, "knn")])
    return markdown(["run", "linear", "kNN"], lines) + below(trained, "run", ("linear", "knn"))


def simclr_v2() -> str:
    rows = [{**row, "step": f"{row['step']}, {row['epochs']} epochs"} for row in read("simclr_v2")]
    head = ["step", "accuracy, 1,000 validation images", "2,000 test images", "linear on all labels, validation"]
    return points(rows, ("accuracy", "test_accuracy", "linear"), "step", head)


def semi_supervised() -> str:
    """Make the table of all methods with few labels, the best first, with their differences from the labels alone."""
    rows = read("semi_supervised")
    alone = [row for row in rows if row["run"] == "supervised"]
    metrics = ("accuracy", "linear", "ece", "pseudo_precision", "pseudo_recall", "largest_class")
    lines = []
    for value in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == value]
        gain = "" if own == alone else f"{average(own, 'accuracy') - average(alone, 'accuracy'):+.3f}"
        lines.append([value, cell(own, "accuracy"), gain, *(mean(own, metric, ".3f") for metric in metrics[1:])])
    head = ["run", "accuracy", "difference", "linear", "ECE", "pseudo-labels: precision", "recall", "largest class"]
    return markdown(head, lines) + below(rows, "run", metrics)


def by_labels(rows: Sequence[Row]) -> str:
    """Make the table of ways to use few labels, by their number."""
    counts = sorted({row["labels.per_class"] for row in rows}, key=int)
    lines = [
        [
            way,
            *(
                cell([row for row in rows if (row["run"], row["labels.per_class"]) == (way, n)], "accuracy")
                for n in counts
            ),
        ]
        for way in dict.fromkeys(row["run"] for row in rows)
    ]
    widths = ", ".join(
        f"{n} labels {half_width([row for row in rows if row['labels.per_class'] == n], 'run', 'accuracy'):.3f}"
        for n in counts
    )
    head = ["accuracy with this many labels a class", *counts]
    return markdown(head, lines) + f"\n\n± of a difference between two of them, 95 %: {widths}"


def propagated_labels() -> list[Row]:
    """Return the rows of two sweeps of the same seeds: label propagation and the labels alone, and what was tried."""
    usual = [row for row in read("semi_supervised") if row["run"] in ("label_propagation ratio=3", "supervised")]
    return [*usual, *read("propagated_labels")]


def cells() -> str:
    """Make the table of features of one mean, and of cells, by method."""
    rows = sorted((row for row in read("cells") if row["state"] != "floor"), key=lambda row: row["run"])
    ways = {"convnet grid=1 last=1": "one mean", "convnet grid=2 last=2": "cells"}
    return crossed(rows, "run", "encoder", ways, "method")


def crossed(rows: Sequence[Row], line: str, column: str, titles: dict[str, str], head: str) -> str:
    """Make a table with a line for each value of one key, and for each metric a column for each value of another."""
    metrics = {"linear": "linear", "knn": "kNN"}
    lines = []
    for value in dict.fromkeys(row[line] for row in rows):
        own = [[row for row in rows if (row[line], row[column]) == (value, way)] for way in titles]
        lines.append([value, *(cell(each, metric) for metric in metrics for each in own)])
    points = [{**row, "point": f"{row[line]}, {row[column]}"} for row in rows]
    heads = [head, *(f"{metric}, {title}" for metric in metrics.values() for title in titles.values())]
    return markdown(heads, lines) + below(points, "point", list(metrics))


RACE_STEPS = (  # the points of sweeps/race_steps.yaml, in order: what each adds to the one above
    "one mean of the last block, AdamW, earlier defaults",
    "four cells of the last two blocks",
    "encoded at 48 pixels and mirrored",
    "views of 24 pixels, encoded at 36",
    "temperature .15, rate 5e-3, weaker jitter, crops of at least .2",
    "Muon",
    "48 channels",
    "encoded at 44 pixels and shifted by three",
)


def race_steps() -> str:
    """Make the table of the race's steps, each with its gain over the one above."""
    rows = read("race_steps")
    runs = [[row for row in rows if row["run"] == run] for run in dict.fromkeys(row["run"] for row in rows)]
    lines = []
    for step, before, own in zip(RACE_STEPS, [None, *runs[:-1]], runs, strict=True):
        gains = [f"{average(own, m) - average(before, m):+.3f}" if before else "" for m in ("linear", "knn")]
        epochs = own[0]["run"].partition(" ")[0].removeprefix("epochs=")
        lines.append([step, epochs, cell(own, "linear"), gains[0], cell(own, "knn"), gains[1]])
    head = ["step, beside those above", "epochs", "linear", "gain", "kNN", "gain"]
    return markdown(head, lines) + below(rows, "run", ("linear", "knn"))


def optimizers() -> str:
    """Make the table of optimizers with their rates, by method, one seed; in bold the best.

    Below it stands how far Muon is ahead, each with the better of its rates, with an interval over methods.
    """
    values = {(row["run"], row["optimizer.name"], row["optimizer.lr"]): row for row in read("optimizers")}
    methods = list(dict.fromkeys(method for method, *_ in values))
    names, rates, lines, ahead = ("adamw", "muon"), ("0.002", "0.005"), {method: [method] for method in methods}, []
    for metric in ("linear", "knn"):
        gains = []
        for method in methods:
            found = [float(values[method, name, rate][metric]) for name in names for rate in rates]
            lines[method] += [f"**{value:.3f}**" if value == max(found) else f"{value:.3f}" for value in found]
            gains.append(max(found[2:]) - max(found[:2]))
        ahead.append(f"{metric} {interval(gains)}")
    head = ["method", *(f"{m}: {name} {rate}" for m in ("linear", "kNN") for name in names for rate in rates)]
    below_it = f"\n\n± of Muon before AdamW, mean over the methods, 95 %: {', '.join(ahead)}"
    return markdown(head, list(lines.values())) + below_it


def race() -> str:
    """Make the table of the race's setting, and of the one before."""
    metrics, settings = ("test_linear", "test_knn"), {"race": "Muon", "race_adamw": "AdamW, rotations beside"}
    lines = [[title, *(cell(read(name), metric) for metric in metrics)] for name, title in settings.items()]
    return markdown(["", *metrics], lines)


def race_settings() -> str:
    """Make the table of single runs with settings drawn at random, the best first."""
    keys = ["method.temperature", "optimizer.lr", "optimizer.weight_decay", "augment.crop_min", "augment.jitter"]
    keys += ["batch_size", "linear"]
    rows = sorted(read("race_settings"), key=lambda row: -float(row["linear"]))
    return markdown(keys, [[f"{float(row[key]):.3g}" for key in keys] for row in rows])


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "lightly": lambda: beside(read("methods"), read("lightly"), "lightly"),
    "lightly_before": lambda: beside(read("methods_before"), read("lightly_before"), "lightly"),
    "shown": lambda: beside(read("methods"), read("shown"), "labels on what it shows"),
    "stable_pretraining": lambda: beside(read("methods"), read("stable_pretraining"), "stable-pretraining"),
    "epochs": epochs,
    "targets": targets,
    "dictionaries": dictionaries,
    "reconstruction": lambda: points(read("reconstruction"), ("linear", "explained_most", "explained_rest")),
    "fixmatch": lambda: points(read("fixmatch"), ("accuracy", "confident", "linear")),
    "small_recipes": lambda: points(read("small_recipes"), ("linear", "knn", "z_rank")),
    "colour_path": lambda: points(read("colour_path"), ("knn", "linear"), "augment.exact"),
    "simclr_v2": simclr_v2,
    "semi_supervised": semi_supervised,
    "few_labels": lambda: by_labels(read("few_labels")),
    "fine_tuning": lambda: by_labels(read("fine_tuning")),
    "longer": lambda: points(read("longer"), ("accuracy", "linear", "ece", "largest_class")),
    "unlabelled_weight": lambda: points(read("unlabelled_weight"), ("accuracy", "linear", "largest_class")),
    "propagated_labels": lambda: points(propagated_labels(), ("accuracy", "linear")),
    "propagated_guesses": lambda: points(read("propagated_guesses"), list(GUESSES), head=["run", *GUESSES.values()]),
    "cells": cells,
    "race_settings": race_settings,
    "race_network": lambda: points(read("race_network"), ("linear", "images_per_second")),
    "race_rotations": lambda: points(read("race_rotations"), ("linear", "images_per_second")),
    "race_muon": lambda: points(read("race_muon"), ("linear", "linear_shifted", "knn", "knn_shifted")),
    "race": race,
    "race_steps": race_steps,
    "optimizers": optimizers,
    "jigsaw_permutations": lambda: shipped("jigsaw_permutations", "method.permutations"),
    "exemplar_classes": lambda: shipped("exemplar_classes", "method.classes"),
    "lejepa_weight": lambda: shipped("lejepa_weight", "method.weight", "batch_size"),
    "mask_ratio": lambda: shipped("mask_ratio"),
    "vat": lambda: points(named(read("vat"), "method.epsilon", "method.entropy"), ("accuracy", "linear")),
}


def read(name: str) -> list[Row]:
    with open(DOCS / "results" / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def named(rows: Sequence[Row], *keys: str) -> list[Row]:
    """Name the points of a sweep over several keys, as `run`."""
    return [{**row, "run": " ".join(f"{key.rpartition('.')[2]}={row[key]}" for key in keys)} for row in rows]


def cell(rows: Sequence[Row], metric: str) -> str:
    """Return the mean, and up to three single runs in brackets."""
    values = [float(row[metric]) for row in sorted(rows, key=lambda row: int(row["seed"])) if row.get(metric)]
    if not values:
        return ""
    shown = ".3f" if max(values) < 10 else ".1f"
    singles = f" ({', '.join(f'{value:{shown}}'.removeprefix('0') for value in values)})" if len(values) < 4 else ""
    return f"{fmean(values):{shown}}{singles}"


def mean(rows: Sequence[Row], metric: str, shown: str) -> str:
    return f"{average(rows, metric):{shown}}" if any(row.get(metric) for row in rows) else ""


def average(rows: Sequence[Row], metric: str) -> float:
    return fmean(float(row[metric]) for row in rows if row.get(metric))


def below(rows: Sequence[Row], key: str, metrics: Sequence[str]) -> str:
    """Return the line with the half width of the intervals; of one seed nothing, for it has none."""
    if len({row["seed"] for row in rows}) < 2:
        return ""
    widths = ", ".join(f"{metric} {half_width(rows, key, metric):.3f}" for metric in metrics)
    return f"\n\n± of a difference between two of them, 95 %: {widths}"


def half_width(rows: Sequence[Row], key: str, metric: str) -> float:
    """Return the half width of a difference's 95 % interval.

    Student's t, with the residuals of an additive model of setting and seed, over all settings.
    """
    used = [row for row in rows if row.get(metric)]
    values = np.array([float(row[metric]) for row in used])
    settings, seeds = ([row[column] for row in used] for column in (key, "seed"))
    dummies = [np.array(column) == level for column in (settings, seeds) for level in dict.fromkeys(column)]
    design = np.array(dummies, float).T
    weights, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    free = len(values) - int(rank)
    deviation = (np.square(values - design @ weights).sum() / free) ** 0.5
    return float(t.ppf(0.975, free) * deviation * (2 / len(set(seeds))) ** 0.5)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


if __name__ == "__main__":
    main()

"""Every figure in the tables of docs/results.md and docs/race.md is made from the rows in docs/results."""

import csv
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy.stats import ttest_1samp, ttest_rel
from statsmodels.formula.api import ols

from eagleray.config import load_run
from eagleray.config.plugin_files import import_file
from eagleray.config.registry import declared

ROOT = Path(__file__).parents[1]
tables = import_file("benchmark_tables", ROOT / "benchmarks/tables.py")


POINTS = {  # the columns that, with the seed, are a run's own, where that is not "trial"
    "simclr_v2": "step", "propagated_guesses": "run", "reconstruction": "run",
    "lightly": "method", "lightly_before": "method", "shown": "method", "stable_pretraining": "method",
    "dictionaries": "dictionary code", "targets": "method",
}  # fmt: skip


def test_the_tables_in_docs_are_those_of_the_rows():
    page = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert tables.filled(page) == page, "make docs"
    for name in tables.TABLES:
        assert page.count(f"<!-- table: {name} -->\n| ") == 1


def test_every_row_of_a_sweep_is_a_run_with_its_seed():
    for name in tables.TABLES:
        with open(ROOT / f"docs/results/{name}.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        point = POINTS.get(name, "trial")
        keys = [(*(row[column] for column in point.split()), row.get("epochs"), row["seed"]) for row in rows]
        assert len(set(keys)) == len(keys)
        assert all(row["seed"] for row in rows)


def test_a_table_made_again_follows_its_rows(monkeypatch: pytest.MonkeyPatch):
    page = "before\n\n<!-- table: fixmatch -->\n| old |\n| --- |\n\n± old\n\nafter | 1 |\n"
    monkeypatch.setitem(tables.TABLES, "fixmatch", lambda: "| new |\n| --- |\n| 1 |")
    assert tables.filled(page) == "before\n\n<!-- table: fixmatch -->\n| new |\n| --- |\n| 1 |\n\nafter | 1 |\n"


def test_a_difference_has_the_interval_of_a_linear_model():
    random = np.random.default_rng(0)
    rows = [{"run": run, "seed": str(seed), "knn": str(random.normal())} for run in "abc" for seed in range(3)]
    numbers = pandas.DataFrame([{**row, "knn": float(row["knn"])} for row in rows])
    low, high = ols("knn ~ C(run) + C(seed)", numbers).fit().conf_int().loc["C(run)[T.b]"]
    assert tables.half_width(rows, "run", "knn") == pytest.approx((high - low) / 2)


def test_those_that_need_more_steps_are_those_that_the_page_names():
    """A gain is shown if it exceeds the interval of the first table, wider for fewer seeds than three."""
    every, thirty = tables.read("methods"), tables.read("epochs")
    trained = [row for row in every if row["state"] != "floor"]
    runs = {row["run"] for row in thirty}

    def gaining(metric: str) -> set[str]:
        found, half = set(), tables.half_width(trained, "run", metric)
        for run in runs:
            ten, more = ([float(row[metric]) for row in rows if row["run"] == run] for rows in (trained, thirty))
            assert len(ten) == 3
            if np.mean(more) - np.mean(ten) > half * ((1 / len(more) + 1 / 3) / (2 / 3)) ** 0.5:
                found.add(run.removesuffix(tables.VIT))
        return found

    assert gaining("linear") == {"colorization", "exemplar", "maskfeat", "ijepa", "msn", "data2vec"}
    assert gaining("knn") == {run.removesuffix(tables.VIT) for run in runs} - {"patch_bert"}
    pixels = max(float(row["knn"]) for row in every if row["trial"] == "raw pixels")
    below = [{row["run"].split()[0] for row in rows if float(row["knn"]) < pixels and row["run"] in runs}
             for rows in (trained, thirty)]  # fmt: skip
    assert below == [{"maskfeat", "ijepa", "msn", "data2vec", "simmim"}, {"data2vec", "simmim"}]
    recognised = [[float(row["recognised"]) for row in rows if row["run"] == "exemplar"] for rows in (trained, thirty)]
    assert max(recognised[0]) < 0.45 < 0.9 < min(recognised[1])


def test_data2vec_s_targets_become_equal_and_i_jepa_s_do_not():
    shares = {(row["method"], row["epochs"]): row for row in tables.read("targets")}
    common = {key: float(row["constant"]) + float(row["place"]) for key, row in shares.items()}
    assert common["data2vec", "0"] < 0.1 < 0.6 < common["data2vec", "30"]
    assert abs(common["ijepa", "30"] - common["ijepa", "0"]) < 0.02
    fast, slow = (
        [float(row["linear"]) for row in tables.read("methods") if row["run"] == run + tables.VIT]
        for run in ("data2vec momentum=0.99", "data2vec")
    )
    assert max(fast) < min(slow), "a slow teacher makes better features"
    assert load_run(None, ["method=data2vec"]).method.config.model_dump()["momentum"] == 0.9998


def means(name: str, *keys: str) -> pandas.DataFrame:
    """Return the means over seeds of rows in docs/results, whose index is `keys`."""
    rows = pandas.read_csv(ROOT / f"docs/results/{name}.csv")
    return pandas.DataFrame(rows.groupby(list(keys)).mean(numeric_only=True))


def test_those_below_the_floors_are_those_that_the_page_lists_with_a_reason():
    """Methods of three families by more than the interval, not their runs with other settings."""
    trained = [row for row in tables.read("methods") if row["state"] != "floor"]
    metrics = ["linear", "knn"]
    half = [tables.half_width(trained, "run", metric) for metric in metrics]
    highest = means("methods", "state", "trial").loc["floor", metrics].max()
    runs = means("methods", "run")[metrics].rename(lambda run: run.removesuffix(tables.VIT))
    below = {
        name
        for name, method in declared("method").items()
        if method.summary.startswith(("Pretext task", "Masked images", "Generative"))
        if (runs.loc[name] + half < highest).any()
    }
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    section = page.partition("## What holds back those below the floors?\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| ")][2:]
    assert sorted(name for line in lines for name in line[0].strip().split(", ")) == sorted(below)
    assert all((ROOT / line[2].strip(" `")).is_file() for line in lines if "not looked at" not in line[1])


def test_the_reasons_on_the_page_are_in_the_rows():
    patches = means("methods", "trial").loc["k-means patches"].linear
    shown, runs = means("shown", "method").linear, means("methods", "run").linear
    assert shown[["jigsaw", "context_prediction"]].max() < patches - 0.02
    assert shown[["count", "colorization", "exemplar"]].min() > patches + 0.06
    assert runs["simclr" + tables.VIT] < runs["patch_bert" + tables.VIT] + 0.01 < patches - 0.09
    parts = means("reconstruction", "run")
    assert parts.linear["labels on rest"] > parts.linear["labels on most"] + 0.03
    blurred = parts.loc[["vae", "denoising_autoencoder"]]
    assert blurred.explained_most.min() > 0.9 > 0.1 > blurred.explained_rest.max()
    assert parts.explained_most["bigan"] < 0
    half = tables.half_width([row for row in tables.read("methods") if row["state"] != "floor"], "run", "linear")
    assert runs["kmeans_features"] - half < runs["sparse_coding"] < patches - half, (
        "400 entries of both, 1,600 of the floor"
    )


def test_methods_stand_beside_others_with_paired_differences():
    """Only runs of the method's own name count, with the seeds of both."""
    draw = np.random.default_rng(1)
    values = draw.normal(size=(tables.MANY, 2, 3)).round(3)
    names = [f"m{number}" for number in range(tables.MANY)]
    ours = [
        {"run": run, "seed": str(seed), "linear": str(values[m, 0, seed] + more), "knn": "0.5"}
        for m, name in enumerate(names)
        for run, more in ((name if m else name + tables.VIT, 0), (f"{name} grid=3", 1))
        for seed in range(3)
    ]
    theirs = [
        {"method": name, "seed": str(seed), "linear": str(values[m, 1, seed]), "knn": "0.25"}
        for m, name in enumerate(names)
        for seed in range(2 if m == 1 else 3)
    ]
    theirs[0:0] = [{**theirs[0], "seed": "3", "linear": "9"}]  # a seed and a method that only they have
    theirs += [{**theirs[0], "method": "only theirs"}]
    found = tables.beside(ours, theirs, "others").splitlines()
    assert found[0] == "| method | linear | others | difference | kNN | others | difference |"
    differences = []
    for m, line in enumerate(found[2 : 2 + tables.MANY]):
        both = slice(2 if m == 1 else 3)
        pair = values[m, 0, both], values[m, 1, both]
        low, high = ttest_rel(*pair).confidence_interval()
        differences.append(float(np.mean(pair[0] - pair[1])))
        _, here, there, gain, knn, their_knn, knn_gain = line.strip("| ").split(" | ")
        assert gain == f"{(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}"
        assert [float(each.partition(" ")[0]) for each in (here, there)] == pytest.approx(np.mean(pair, 1), abs=6e-4)
        assert (knn[:5], their_knn[:5], knn_gain) == ("0.500", "0.250", "+0.250 ± 0.000")
    assert found[2 + tables.MANY] == "| only theirs |  | 9.000 (9.000) |  |  | 0.250 (.250) |  |"
    low, high = ttest_1samp(differences, 0).confidence_interval()
    expected = f"linear {(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}, knn +0.250 ± 0.000"
    assert found[-1] == f"± of the difference's mean over the methods, 95 %: {expected}"

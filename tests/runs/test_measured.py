"""What is kept of an evaluation: a row for each number and settings, tables, pictures; nothing is lost or doubled."""

import csv
from pathlib import Path

import pytest

from eagleray.config import load_run
from eagleray.contracts.errors import Damaged
from eagleray.contracts.evaluator import Found
from eagleray.contracts.interval import wilson
from eagleray.contracts.metric import Metric
from eagleray.loop import train
from eagleray.runs.measured import FILE, Measured, Number, kept, measured

METRICS = {"a": Metric("a share", interval="wilson"), "b": Metric("a mean", interval="own"), "c": Metric("a rank")}
FOUND = Found(
    {"a": 0.5, "b": 2.0, "c": 3.0},
    intervals={"b": (1.5, 2.5)},
    words=["a is half"],
    tables={"classes": [["class", "images"], ["cat, tabby", 3]]},
    files={"matrix.png": b"png"},
)


def test_shares_get_wilsons_interval_and_the_others_their_own():
    found = measured(FOUND, 40, "k=3", METRICS)
    assert dict(found) == {"a": 0.5, "b": 2.0, "c": 3.0}
    assert found.numbers["a"] == Number(0.5, 40, wilson(0.5, 40), "k=3")
    assert found.numbers["b"].interval == (1.5, 2.5)
    assert found.numbers["c"].interval is None
    tested = found.on_test()
    assert list(tested) == ["test_a", "test_b", "test_c"]
    assert (list(tested.tables), list(tested.files)) == (["test_classes"], ["test_matrix.png"])
    assert tested.words == ("on the test set, a is half",)
    assert dict(found | tested) == {**found, **tested}
    assert list((found | tested).only(["test_b"])) == ["test_b"]


def test_numbers_may_be_of_different_images():
    found = measured(Found({"a": 0.5, "c": 3.0}), {"a": 7, "c": 40}, "k=3", METRICS)
    assert found.numbers == {"a": Number(0.5, 7, wilson(0.5, 7), "k=3"), "c": Number(3.0, 40, None, "k=3")}


def test_what_is_kept_is_read_back_and_grows_by_what_is_new(tmp_path: Path):
    first, other = measured(FOUND, 40, "k=3", METRICS), measured(Found({"a": 0.7}), 40, "k=5", METRICS)
    folder = tmp_path / "artifacts"
    assert kept(folder) == []
    first.keep(folder)
    assert dict(kept(folder)) == first.numbers
    other.keep(folder, beside=True)
    again = measured(Found({"a": 0.6}), 40, "k=3", METRICS)
    again.keep(folder, beside=True)  # of the same settings: the last one counts
    assert [(name, one.value, one.settings) for name, one in kept(folder)] == [
        ("a", 0.6, "k=3"),
        ("b", 2.0, "k=3"),
        ("c", 3.0, "k=3"),
        ("a", 0.7, "k=5"),
    ]
    assert list(csv.reader((folder / "classes.csv").read_text().splitlines()))[1] == ["cat, tabby", "3"]
    assert (folder / "matrix.png").read_bytes() == b"png"
    Measured({"a": Number(1.0, 2)}).keep(folder)  # what is trained once more starts from nothing
    assert kept(folder) == [("a", Number(1.0, 2))]
    (folder / FILE).write_text("metric,value\na,much\n")
    with pytest.raises(Damaged, match=r"evaluation\.csv is damaged or was edited; remove it"):
        kept(folder)


def test_training_keeps_the_final_numbers(tmp_path: Path):
    tiny = ["data.limit=120", "batch_size=40", "epochs=2", "encoder.width=8", "threads=1", "device=cpu"]
    reports = train(load_run(None, tiny), tmp_path)
    assert not next(report for report in reports if report.epoch_ended).done
    assert not (tmp_path / "artifacts").exists()
    *_, last = reports
    final = dict(kept(tmp_path / "artifacts"))
    assert {"knn", "linear", "test_knn", "rank", "positive", "nesum"} <= set(final)
    assert {name: one.value for name, one in final.items()} == {name: last.metrics[name] for name in final}
    assert all(one.images for one in final.values())

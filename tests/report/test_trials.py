"""Which runs are compared: one sweep is the unit, copies count once, and only repetitions are averaged."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from scipy.stats import t, ttest_rel

from eagleray.report.analysis import Analysis, analyse
from eagleray.report.finding import finding
from eagleray.report.recorded import Recorded, from_directory, from_mlflow
from eagleray.report.sides import best_against_best, conclusions
from eagleray.report.trials import Comparison, Group, compared, everything_csv, group_of, of_sweep
from eagleray.runs.record import CHANGES, Record
from eagleray.tracking.contents import text_of
from recorded_runs import recorded_sweep

SHARED = {"method.name": "simclr", "data.name": "digits", "epochs": 4, "batch_size": 64, "threads": 1}


def recorded(name: str, kind: str = "run", knn: float | None = None, created: int = 0, **facts: Any) -> Recorded:
    known: dict[str, Any] = {"parent": None, "state": "finished", "message": "", "params": SHARED, "tags": {}, **facts}
    metrics = {} if knn is None else {"knn": knn}
    return Recorded(name, known.pop("key", name), kind, created=created, metrics=metrics, **{"code": "abc", **known})


def a_sweep(name: str, values: dict[Any, Sequence[float]], created: int = 0, key: str = "t", **shared: Any) -> Group:
    """Return a sweep with one varied key: value -> knn with the seeds 0, 1, …"""
    common = {k: v for k, v in {**SHARED, **shared}.items() if k != key}
    own = {"search": "grid", "seeds": 2, "metric": "knn", "mode": "max", f"vary.{key}": "[…]"}
    parent = recorded(name, "sweep", created=created, params={**common, **own}, tags={"varied": key})
    trials = [
        recorded(
            f"{number:03d}-seed{seed}", "trial", knn, created, key=f"{name} {number} {seed}", parent=name,
            params={**common, key: value, "seed": seed},
            tags={"varied": key, "label": f"{number:03d}", "point": str(number)},
        )
        for number, (value, reached) in enumerate(values.items())
        for seed, knn in enumerate(reached)
    ]  # fmt: skip
    return group_of(name, [parent, *trials])


def run(name: str, knn: float, seed: int = 0, code: str = "abc", **params: Any) -> Recorded:
    return recorded(name, knn=knn, params={**SHARED, **params, "seed": seed}, code=code)


def board(comparison: Comparison) -> Analysis:
    return analyse(comparison.trials, comparison.varied, "knn", "max", comparison.binned)


def cells(comparison: Comparison) -> list[tuple[str, dict[str, Any], tuple[float, ...]]]:
    return [(row.name, dict(row.params), row.values) for row in board(comparison).rows]


# --- one sweep -------------------------------------------------------------------------------------------------


def test_the_newest_sweep_of_an_experiment_is_the_unit_and_the_others_are_named():
    older, newer = a_sweep("s/1", {0.1: [0.5]}, 1), a_sweep("s/2", {0.1: [0.6]}, 2)
    everything = [run("alone", 0.9), *(each for group in (newer, older) for each in (group.sweep, *group.runs) if each)]
    found = group_of("s", everything)
    assert (found.name, [each.key for each in found.runs]) == ("s/2", ["s/2 0 0"])
    assert found.note == ("s has 2 sweeps and 1 run outside sweeps; this is the newest sweep, s/2. By name: s/1, alone")
    assert (found.metric, found.mode, found.varied) == ("knn", "max", ("t",))
    assert newer.note == ""


def test_the_same_sweep_run_twice_is_no_evidence():
    """It would seem that two runs of each point agree to the last digit."""
    values = {0.1: [0.853], 0.2: [0.832]}
    first, second = a_sweep("s/1", values, 1), a_sweep("s/2", values, 2)
    both = compared([first, second])
    assert cells(both) == [("s/1 000", {"t": 0.1}, (0.853,)), ("s/1 001", {"t": 0.2}, (0.832,))]
    assert both.notes == ["000-seed0, 001-seed0 repeat the settings and the seed of another run, which counts once"]
    assert finding(board(both)) == finding(board(compared([first]))).replace("000", "s/1 000")
    assert "may be noise" in finding(board(both))


def test_a_trial_that_is_not_as_its_sweep_says_is_left_out_by_name():
    group = a_sweep("s/1", {0.1: [0.8, 0.8], 0.2: [0.7]})
    other = run("001-seed1", 0.2, 1, t=0.2, epochs=1)
    trials = (*group.runs, recorded("001-seed1", "trial", 0.2, params=other.params, tags={"label": "001"}))
    found = compared([Group(group.name, trials, group.sweep, group.varied)])
    assert [values for _, _, values in cells(found)] == [(0.8, 0.8), (0.7,)]
    assert found.notes == ["001-seed1 is left out: it was trained with epochs=1, and its sweep has epochs=4"]


def test_versions_of_the_code_within_a_sweep_are_named():
    group = a_sweep("s/1", {0.1: [0.8], 0.2: [0.7]})
    resumed = recorded("001-seed1", "trial", 0.7, params={**SHARED, "t": 0.2, "seed": 1}, code="def")
    found = compared([Group(group.name, (*group.runs, resumed), group.sweep, group.varied)])
    assert found.notes == ["s/1: its runs were made by 2 versions of the code (abc, def)"]


def test_a_trial_that_went_on_with_other_numbers_of_workers_is_named():
    group, change = a_sweep("s/1", {0.1: [0.8], 0.2: [0.7]}), "from 2 to 1 at step 8, 2026-11-26 12:00:00"
    changed = recorded("001-seed1", "trial", 0.7, params={**SHARED, "t": 0.2, "seed": 1}, tags={CHANGES: change})
    (note,) = compared([Group(group.name, (*group.runs, changed), group.sweep, group.varied)]).notes
    assert note == f"001-seed1 has gone on with other numbers of workers ({change}): its numbers agree up to rounding"


def test_a_population_changes_settings_during_training_so_its_trials_are_points_of_their_own():
    group = a_sweep("s/1", {0.1: [0.8]})
    twin = recorded(
        "001", "trial", 0.7, params=group.runs[0].params, tags={"label": "001", "changed_after_epoch_2": "t=0.3"}
    )
    assert len(cells(compared([Group(group.name, (*group.runs, twin), group.sweep, group.varied)]))) == 2
    still = recorded("001", "trial", 0.8, params=group.runs[0].params, tags={"label": "001"})
    assert len(cells(compared([Group(group.name, (*group.runs, still), group.sweep, group.varied)]))) == 1


def test_a_finished_copy_is_preferred_to_one_that_failed():
    failed = recorded("a", state="failed", params={**SHARED, "seed": 0}, created=2)
    assert [each.name for each in compared([Group("e", (failed, run("b", 0.8)))]).runs] == ["b"]


def test_of_equal_points_that_a_search_suggested_the_first_is_kept():
    group = a_sweep("s/1", {0.1: [0.8], 0.2: [0.7]})
    again = recorded("002-seed0", "trial", 0.8, 9, key="z", params=group.runs[0].params, tags={"label": "002"})
    found = compared([Group(group.name, (*group.runs, again), group.sweep, group.varied)])
    assert [name for name, _, _ in cells(found)] == ["000", "001"]
    assert found.notes == ["002-seed0 repeats the settings and the seed of another run, which counts once"]


def test_of_copies_outside_sweeps_the_newest_is_kept():
    older, newer = (replace(run(name, 0.8), created=created) for name, created in (("a", 1), ("b", 2)))
    assert [each.name for each in compared([Group("e", (older, newer))]).runs] == ["b"]


# --- runs outside sweeps ---------------------------------------------------------------------------------------


def test_repetitions_differ_in_their_seed_and_in_what_cannot_matter():
    same = [run("a", 0.8, 0, t=1), run("b", 0.7, 1, t=1, threads=8), run("c", 0.6, 0, t=2)]
    found = compared([group_of("e", same)])
    assert cells(found) == [("a", {"t": 1}, (0.8, 0.7)), ("c", {"t": 2}, (0.6,))]
    assert (found.varied, found.notes, found.obstacle) == (["t"], [], "")


def test_other_budgets_and_other_data_are_neither_averaged_nor_ranked():
    runs = [run("a", 0.8, 0), run("b", 0.3, 1, epochs=1), run("c", 0.9, 2, **{"data.root": "/x"})]
    found = compared([group_of("e", runs)])
    assert [values for _, _, values in cells(found)] == [(0.9,), (0.8,), (0.3,)]
    assert set(found.varied) == {"epochs", "data.root"}
    assert list(conclusions(found, board(found))) == [
        "No finding over all: these runs differ in data.root, epochs, so their knn cannot be ranked."
    ]


def test_a_budget_that_is_all_that_differs_is_what_is_compared():
    found = compared([group_of("e", [run("a", 0.8), run("b", 0.3, epochs=1)])])
    assert (found.varied, found.obstacle) == (["epochs"], "")
    images = compared([group_of("e", [run("a", 0.8), run("b", 0.3, **{"data.root": "/x"})])])
    assert images.obstacle == "these runs differ in data.root"


ROOT = {"data.name": "folder", "data.root": "/a"}


def imaged(name: str, knn: float, seed: int, images: str | None, **params: Any) -> Recorded:
    return replace(run(name, knn, seed, **{**ROOT, **params}), images=images)


def test_equal_images_are_the_same_data_wherever_they_lie():
    """A run that ended before its images were recorded has those of its place."""
    moved = {"data.root": "/b"}
    runs = [imaged("a", 0.8, 0, "d1"), imaged("b", 0.7, 1, "d1", **moved), imaged("c", 0.6, 2, None, **moved)]
    found = compared([group_of("e", runs)])
    assert (cells(found), found.obstacle) == ([("a", {}, (0.8, 0.7, 0.6))], "")


def test_images_that_were_added_make_other_data_of_one_folder():
    found = compared([group_of("e", [imaged("a", 0.8, 0, "d1"), imaged("b", 0.7, 1, "d2")])])
    assert [values for _, _, values in cells(found)] == [(0.8,), (0.7,)]
    assert found.obstacle == "these runs differ in data.digest"
    elsewhere = compared([group_of("e", [imaged("a", 0.8, 0, "d1"), imaged("b", 0.7, 1, "d2", **{"data.root": "/b"})])])
    assert elsewhere.obstacle == "these runs differ in data.root"


def test_a_trial_on_other_images_than_its_sweep_is_left_out_by_name():
    group = a_sweep("s/1", {0.1: [0.8, 0.8], 0.2: [0.7, 0.9]})
    runs = tuple(replace(each, images="d1", created=number) for number, each in enumerate(group.runs))
    later = (*runs[:3], replace(runs[3], images="d2"))
    found = compared([replace(group, runs=later)])
    assert [values for _, _, values in cells(found)] == [(0.8, 0.8), (0.7,)]
    assert found.notes == ["001-seed1 is left out: the images had changed since the first trials of its sweep"]
    assert compared([replace(group, runs=runs)]).notes == []


def test_what_data_settings_change_in_the_images_is_no_difference_of_its_own():
    groups = [a_sweep(f"{name}/1", {32: [0.8], 64: [0.7]}, key="data.size", lr=name) for name in "ab"]
    known = [
        replace(one, runs=tuple(replace(each, images=str(each.params["data.size"])) for each in one.runs))
        for one in groups
    ]
    assert compared(known).obstacle == ""


def test_a_setting_of_another_method_is_a_dash_and_an_unset_one_is_the_default():
    simclr = {"method.name": "simclr", "method.temperature": 0.2}
    runs = [run("a", 0.8, **simclr, **{"augment.flip": 0.5}), run("b", 0.7, **{**simclr, "method.temperature": 0.3})]
    runs += [run("c", 0.6, **{"method.name": "byol"}), run("d", 0.5, **{**simclr, "method.temperature": None})]
    found = compared([group_of("e", runs)])
    assert [tuple(params.values()) for _, params, _ in cells(found)] == [
        ("simclr", 0.2, 0.5), ("simclr", 0.3, None), ("byol", "–", None), ("simclr", None, None),
    ]  # fmt: skip


def test_what_a_name_decides_needs_no_column():
    simclr = {"method.name": "simclr", "method.temperature": 0.2, "optimizer.lr": 1e-3, "encoder.name": "convnet"}
    mae = {"method.name": "mae", "method.mask": 0.75, "optimizer.lr": 2e-3, "encoder.name": "vit_tiny"}
    runs = [run("a", 0.8, **simclr), run("b", 0.7, **mae), run("c", 0.6, **{**mae, "batch_size": 32})]
    found = compared([group_of("e", runs)])
    assert found.varied == ["method.name", "batch_size", "encoder.name"]
    assert found.notes == ["method.name decides also method.temperature, optimizer.lr, method.mask"]
    longer = compared([group_of("e", [run("a", 0.8, **simclr), run("b", 0.7, **mae, epochs=9)])])
    assert "epochs" in longer.varied, "no name decides a budget"


def test_every_run_and_setting_is_written_for_spreadsheets():
    found = compared([a_sweep("s/1", {0.1: [0.8, 0.7]}), group_of("e", [run("alone", 0.5, extra="x")])])
    lines = list(csv.DictReader(io.StringIO(everything_csv(found))))
    assert [(line["of"], line["run"], line["seed"], line["knn"]) for line in lines] == [
        ("s/1", "000-seed0", "0", "0.8"), ("s/1", "000-seed1", "1", "0.7"), ("e", "alone", "0", "0.5"),
    ]  # fmt: skip
    assert {"batch_size", "epochs", "threads", "t", "extra"} <= set(lines[0])


# --- side by side ----------------------------------------------------------------------------------------------


def test_sweeps_side_by_side_show_what_differs_between_them():
    first = a_sweep("a/1", {0.1: [0.8, 0.82], 0.2: [0.7, 0.72]})
    second = a_sweep("b/1", {0.1: [0.9, 0.93], 0.3: [0.6, 0.61]}, **{"method.name": "byol"})
    found = compared([first, second])
    assert found.varied == ["t", "method.name"]
    assert [(name, params["method.name"]) for name, params, _ in cells(found)] == [
        ("b/1 000", "byol"), ("a/1 000", "simclr"), ("a/1 001", "simclr"), ("b/1 001", "byol"),
    ]  # fmt: skip
    p_value = ttest_rel([0.9, 0.93], [0.8, 0.82]).pvalue
    best, other = (margin * t.ppf(0.975, 1) for margin in (stdev([0.9, 0.93]) / 2**0.5, stdev([0.8, 0.82]) / 2**0.5))
    assert list(best_against_best(found, board(found))) == [
        f"the best of b/1 (b/1 000, knn 0.915 ± {best:.3f}) is better than the best of a/1 (a/1 000, 0.810 ± "
        f"{other:.3f}; p = {p_value:.3f}, t test paired by seed)."
    ]
    third = a_sweep("c/1", {0.1: [0.5, 0.5]}, **{"method.name": "dcl"})
    three = compared([first, second, third])
    said = next(best_against_best(three, board(three)))
    assert f"p = {3 * p_value:.3f}, t test paired by seed, Bonferroni-corrected for 3 comparisons" in said


def test_a_best_point_that_two_sweeps_have_is_the_best_of_both():
    first, second = a_sweep("a/1", {0.1: [0.8], 0.2: [0.7]}), a_sweep("b/1", {0.1: [0.8], 0.3: [0.6]})
    found = compared([first, second])
    assert list(best_against_best(found, board(found))) == ["a/1 and b/1 have the same best point, a/1 000."]
    third = compared([a_sweep("a/1", {0.1: [0.8]}), a_sweep("b/1", {0.2: [0.7]})])
    assert list(best_against_best(third, board(third))) == [
        "the best of a/1 (a/1 000, knn 0.800) is above the best of b/1 (b/1 000, 0.700; may be noise)."
    ]


def test_of_two_sweeps_by_an_error_the_lower_one_is_ahead():
    found = compared([a_sweep("a/1", {0.1: [0.8]}), a_sweep("b/1", {0.2: [0.7]})])
    assert list(best_against_best(found, analyse(found.trials, found.varied, "knn", "min"))) == [
        "the best of b/1 (b/1 000, knn 0.700) is below the best of a/1 (a/1 000, 0.800; may be noise)."
    ]


def test_sweeps_with_other_budgets_are_shown_but_not_judged():
    groups = [a_sweep("a/1", {0.1: [0.8], 0.2: [0.7]}), a_sweep("b/1", {0.1: [0.9], 0.2: [0.8]}, epochs=8)]
    found = compared(groups)
    assert [values for _, _, values in cells(found)] == [(0.9,), (0.8,), (0.8,), (0.7,)]
    assert list(conclusions(found, board(found))) == [
        "No finding over all: these runs differ in epochs, so their knn cannot be ranked.",
        *(f"{group.name}: {finding(board(compared([group])))}" for group in groups),
    ]


def test_sweeps_with_one_question_have_one_finding_and_others_have_each_their_own():
    first, second = a_sweep("a/1", {0.1: [0.8, 0.7], 0.2: [0.7, 0.6]}), a_sweep("b/1", {0.3: [0.5, 0.4]})
    one = compared([first, second])
    assert next(conclusions(one, board(one))) == finding(board(one))
    other = a_sweep("c/1", {32: [0.5, 0.4], 128: [0.3, 0.4]}, key="batch_size")
    two = compared([first, other])
    assert [sentence.partition(":")[0] for sentence in conclusions(two, board(two))][:2] == ["a/1", "c/1"]


def test_seeds_of_one_point_may_come_from_two_sweeps():
    first, second = a_sweep("a/1", {0.1: [0.8, 0.82]}), a_sweep("b/1", {0.1: [0.8, 0.82, 0.84]})
    assert cells(compared([first, second])) == [("a/1 000", {}, (0.8, 0.82, 0.84))]


def test_sweeps_by_several_versions_of_the_code_differ_in_it():
    group = a_sweep("b/1", {0.1: [0.9]})
    newer = Group("b/1", tuple(replace(each, code="def") for each in group.runs), group.sweep, group.varied)
    found = compared([a_sweep("a/1", {0.1: [0.8]}), newer])
    assert cells(found) == [("b/1 000", {"code": "def"}, (0.9,)), ("a/1 000", {"code": "abc"}, (0.8,))]


def test_the_floors_of_two_sweeps_are_one_on_the_same_data_and_two_on_other_data():
    def pixels(of: Group, knn: float, **params: Any) -> Group:
        tags = {"floor": "pixels", "point": "raw pixels digits", "label": "raw pixels"}
        floor = recorded(
            "raw pixels", "floor", knn, tags=tags, params={"data.name": "digits", "seed": 0, **params}, key=of.name
        )
        return Group(of.name, (*of.runs, floor), of.sweep, of.varied)

    first, second = a_sweep("a/1", {0.1: [0.8]}), a_sweep("b/1", {0.2: [0.7]})
    same = compared([pixels(first, 0.9), pixels(second, 0.9)])
    assert [(row.name, row.values) for row in board(same).floors] == [("raw pixels", (0.9,))]
    other = compared([pixels(first, 0.9), pixels(second, 0.6, **{"data.limit": 50})])
    assert [row.name for row in board(other).floors] == ["raw pixels digits", "raw pixels digits of b/1"]


# --- where runs come from --------------------------------------------------------------------------------------


def test_a_sweep_is_read_from_its_directory(tmp_path: Path):
    own = {"search": "grid", "metric": "linear", "mode": "max", "epochs": 2, "vary.batch_size": "[64, 128]"}
    tags = {"kind": "sweep", "varied": "batch_size"}
    parent = Record.create(tmp_path / "s/1", name="s", experiment="s", params=own, run={"x": 1}, tags=tags)

    def child(name: str, tags: dict[str, str], **params: Any) -> Record:
        return Record.create(
            parent.directory / "trials" / name, name=name, experiment="s", run={"x": 1}, parent=parent, params=params,
            tags={"kind": "trial", "varied": "batch_size", "point": "0", "label": "000", **tags},
        )  # fmt: skip

    done = child("000", {}, batch_size=64, seed=0, epochs=2)
    done.append(10, {"knn": 0.7, "loss": float("nan")}, 1)
    done.append(20, {"knn": 0.8}, 2)
    done.finish("finished", summary={"knn": 0.8, "test_knn": 0.75})
    child("001", {"label": "001"}, batch_size=128, seed=0, epochs=2).append(10, {"knn": 0.6}, 1)
    pixels = {"kind": "floor", "floor": "pixels", "point": "raw pixels digits", "label": "raw pixels"}
    child("raw pixels seed0", pixels, seed=0).finish("failed", "no room", summary={"knn": 0.9})
    found = of_sweep(parent, ["batch_size"])
    assert (found.name, found.metric, found.binned, found.shared) == ("s/1", "linear", [], {"epochs": 2})
    facts = {each.name: (each.kind, each.state, each.message, dict(each.metrics), each.seed) for each in found.runs}
    assert facts == {
        "000": ("trial", "finished", "", {"knn": 0.8, "test_knn": 0.75}, 0),
        "001": ("trial", "running", "", {"knn": 0.6}, 0),
        "raw pixels seed0": ("floor", "failed", "no room", {"knn": 0.9}, 0),
    }
    assert group_of("s", [from_directory(each) for each in (parent, *parent.children())]) == found


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-12, 3, 1.0, True, "crop+flip", "1e-1x", 123456789.123])
def test_a_value_read_from_mlflow_equals_the_one_in_the_directory(tmp_path: Path, value: Any):
    record = Record.create(tmp_path, name="a", experiment="e", params={"x": value, "seed": 3}, run={"x": 1})
    row = {
        "name": "a", "run_id": "1", "parent": None, "state": "running", "metrics": {}, "experiment_id": "7",
        "images": None,
        "created": record.created, "params": {key: text_of(each) for key, each in record.params.items()},
        "tags": {f"environment.{key}": text_of(each) for key, each in record.environment.items() if each is not None},
    }  # fmt: skip
    here, there = from_directory(record), from_mlflow(row)
    assert (here.params, here.seed, here.code) == (there.params, there.seed, there.code)
    assert here.code


def test_values_of_a_list_are_levels_and_those_of_a_range_a_scale(tmp_path: Path):
    vary = {"method.queue": "declared", "batch_size": [64, 128, 256], "method.temperature": "declared"}
    sweep, parent = recorded_sweep(tmp_path, vary=vary, run={"method": "moco"}, search="random", trials=12, seeds=1)
    found = compared([of_sweep(parent, sweep.vary)])
    assert found.binned == ["method.temperature"]
    levels = {effect.key: [level.label for level in effect.levels] for effect in board(found).effects.each}
    assert levels["batch_size"] == ["64", "128", "256"]
    assert set(levels["method.queue"]) <= {"1024", "4096", "16384", "65536"}
    assert all(" to " in label for label in levels["method.temperature"])


def test_a_key_that_one_sweep_draws_and_another_leaves_unset_is_no_scale():
    drawn = a_sweep("a/1", {value: [value] for value in (0.1, 0.2, 0.3, 0.4, 0.5)}, 1, key="flip")
    assert drawn.sweep
    drawn = replace(drawn, sweep=replace(drawn.sweep, params={**drawn.sweep.params, "vary.flip": "Uniform(low=0)"}))
    assert compared([drawn]).binned == ["flip"]
    both = compared([drawn, a_sweep("b/1", {1: [0.5], 2: [0.6]}, 2, key="batch")])
    assert both.binned == []
    assert {effect.key for effect in board(both).effects.each} == {"flip", "batch"}

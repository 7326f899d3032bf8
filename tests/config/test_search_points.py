"""Which runs a sweep consists of: the same wherever they are counted, none twice, each what its params say."""

from typing import Any

from eagleray.config import Sweep, validated
from eagleray.config.search_points import as_param, as_trial, assignments, points, read


def a_sweep(vary: dict[str, Any], **settings: Any) -> Sweep:
    return validated(Sweep, {"name": "test", "vary": vary, **settings})


LISTS = {"method.temperature": [0.1, 0.2, 0.5], "batch_size": [64, 128]}


def test_a_grid_is_every_combination_in_order():
    found = assignments(a_sweep(LISTS, search="grid"))
    assert [tuple(values.values()) for values in found] == [
        (0.1, 64), (0.1, 128), (0.2, 64), (0.2, 128), (0.5, 64), (0.5, 128)]  # fmt: skip


def test_random_points_from_lists_do_not_repeat_and_more_trials_only_add():
    few, more, all_ = (assignments(a_sweep(LISTS, trials=count)) for count in (2, 4, 50))
    assert more[:2] == few
    assert all_[:4] == more
    assert len(all_) == 6 == len({tuple(values.items()) for values in all_})


def test_random_points_from_ranges_are_a_function_of_the_seed():
    vary = {"method.temperature": {"log_uniform": [0.05, 1]}, "optimizer.lr": "declared", "batch_size": [64, 128]}
    first, again, other = (
        assignments(a_sweep(vary, trials=20, run={"seed": seed})) for seed in (0, 0, 1)
    )  # fmt: skip
    assert first == again
    assert first != other
    assert assignments(a_sweep(vary, trials=30))[:20] == first
    assert len({tuple(values.items()) for values in first}) == 20
    assert {values["batch_size"] for values in first} == {64, 128}
    assert all(isinstance(values["method.temperature"], float) for values in first)


def test_each_point_runs_with_each_seed_in_a_directory_of_its_own():
    found = points(a_sweep({"method.temperature": [0.1, 0.2]}, search="grid", seeds=2, run={"seed": 5}))
    assert [point.name for point in found] == ["000-seed5", "000-seed6", "001-seed5", "001-seed6"]
    assert [point.tags for point in found][2] == {"kind": "trial", "point": "1", "label": "001"}
    assert [point.params for point in found][1] == {"method.temperature": 0.1, "seed": 6}
    question = a_sweep({"seed": [3, 9]}, search="grid")
    assert [point.run(question).seed for point in points(question)] == [3, 9]


def test_a_whole_variant_is_named_in_few_words():
    variants = [
        {"method": "mae", "encoder": "vit_tiny"},
        {"method": {"name": "simclr", "temperature": 0.1}, "epochs": 5},
    ]
    question = a_sweep({"run": variants, "augment.only": [["crop", "jitter"], []]}, search="grid")
    found = points(question)
    assert [point.params["run"] for point in found] == ["mae vit_tiny"] * 2 + ["simclr temperature=0.1 epochs=5"] * 2
    assert [point.params["augment.only"] for point in found][:2] == ["crop+jitter", "nothing"]
    assert found[0].name == found[0].label == "000-mae_vit_tiny"
    assert found[0].run(question).encoder.name == "vit_tiny"
    assert [read(question, point.params) for point in found] == [dict(point.values) for point in found]


def test_shown_leaves_plain_values_alone():
    assert [as_param(value) for value in (0.1, 3, "x", None, True)] == [0.1, 3, "x", None, True]


def test_a_trial_leaves_the_test_part_alone_and_keeps_to_its_share():
    question = a_sweep({"optimizer.lr": [1e-3, 1e-2]}, search="grid", cpus_per_trial=3.5)
    run = points(question)[1].run(question)
    assert (run.optimizer.lr, run.evaluate.test, run.threads, run.device) == (1e-2, False, 3, "cpu")
    assert points(a_sweep({"seed": [0]}, search="grid", gpus_per_trial=0.5, run={"threads": 7}))[0].values == {
        "seed": 0
    }
    shared = a_sweep({"seed": [0]}, search="grid", gpus_per_trial=0.5, run={"threads": 7})
    run = as_trial(shared, shared.variant({}))
    assert (run.device, run.threads) == ("auto", 7), "what the file says holds"


def test_a_population_keeps_the_checkpoints_that_others_may_take():
    question = a_sweep({"optimizer.lr": [1e-3, 1e-2]}, trials=4, scheduler="pbt", grace=3, run={"epochs": 9})
    found = points(question)
    assert len(found) == 4, "twins are welcome"
    kept = found[0].run(question).checkpoints
    assert (kept.every_epochs, kept.keep) == (1, 5)

"""Which runs a sweep consists of: the same wherever they are counted, none twice, each what its params say."""

from typing import Any

import pytest

from eagleray.config import Sweep, read_run, validated
from eagleray.config.run import leaves
from eagleray.config.search_points import as_trial, assignments, points, read, sweep_params
from eagleray.config.settings import as_param
from eagleray.contracts.errors import ConfigError


def a_sweep(vary: dict[str, Any], **settings: Any) -> Sweep:
    return validated(Sweep, {"name": "test", "vary": vary, **settings})


LISTS = {"method.temperature": [0.1, 0.2, 0.5], "batch_size": [64, 128]}


def test_a_grid_is_every_combination_in_order():
    found = assignments(a_sweep(LISTS, search="grid"))
    assert [tuple(values.values()) for values in found] == [
        (0.1, 64), (0.1, 128), (0.2, 64), (0.2, 128), (0.5, 64), (0.5, 128)]  # fmt: skip


def test_random_points_from_lists_do_not_repeat_and_more_trials_only_add():
    few, more, all_ = (assignments(a_sweep(LISTS, trials=count)) for count in (2, 4, 6))
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


def test_random_points_from_a_small_range_do_not_repeat():
    found = assignments(a_sweep({"batch_size": {"int": [64, 66]}}, trials=20))
    assert sorted(values["batch_size"] for values in found) == [64, 65, 66]


def test_each_point_runs_with_each_seed_in_a_directory_of_its_own():
    found = points(a_sweep({"method.temperature": [0.1, 0.2]}, search="grid", seeds=2, run={"seed": 5}))
    assert [point.name for point in found] == ["000-seed5", "000-seed6", "001-seed5", "001-seed6"]
    assert [point.tags for point in found][2] == {
        "kind": "trial",
        "point": "1",
        "label": "001",
        "varied": "method.temperature",
    }
    assert [point.varied for point in found][1] == {"method.temperature": 0.1, "seed": 6}
    question = a_sweep({"seed": [3, 9]}, search="grid")
    assert [point.run(question).seed for point in points(question)] == [3, 9]


def test_a_whole_variant_is_named_in_few_words():
    variants = [
        {"method": "mae", "encoder": "vit_tiny"},
        {"method": {"name": "simclr", "temperature": 0.1}, "epochs": 5},
    ]
    question = a_sweep({"run": variants, "augment.only": [["crop", "jitter"], []]}, search="grid")
    found = points(question)
    assert [point.varied["run"] for point in found] == ["mae vit_tiny"] * 2 + ["simclr temperature=0.1 epochs=5"] * 2
    assert [point.varied["augment.only"] for point in found][:2] == ["crop+jitter", "nothing"]
    assert found[0].name == found[0].label == "000-mae_vit_tiny"
    assert found[0].run(question).encoder.name == "vit_tiny"
    assert [read(question, point.params(question)) for point in found] == [dict(point.values) for point in found]


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


# --- what records keep of them ---------------------------------------------------------------------------------


def test_a_trial_keeps_all_its_settings_and_knows_which_are_varied():
    question = a_sweep({"method.temperature": [0.1, 0.2]}, search="grid", run={"epochs": 3, "tracking": {"uri": "x"}})
    point = points(question)[1]
    params = point.params(question)
    assert {"method.name": "simclr", "method.temperature": 0.2, "epochs": 3, "seed": 0}.items() <= params.items()
    written = {key for key, value in leaves(point.run(question).file()) if value is not None}
    assert set(params) == {key for key in written if not key.startswith("tracking")}
    assert point.tags["varied"] == "method.temperature"


def test_a_sweep_keeps_what_all_its_trials_share_and_what_it_varies():
    variants = [{"method": "mae", "encoder": "vit_tiny"}, {"method": "simclr", "batch_size": 64}]
    params = sweep_params(a_sweep({"run": variants, "seed": [1, 2]}, search="grid", run={"epochs": 3}))
    assert {"epochs": 3, "search": "grid", "metric": "knn", "mode": "max"}.items() <= params.items()
    assert (params["vary.run"], params["vary.seed"]) == ("[mae vit_tiny, simclr batch_size=64]", "[1, 2]")
    assert {params[key] for key in ("method.name", "encoder.name", "batch_size", "method.temperature")} == {"several"}
    assert not {"seed", "threads", "evaluate.test"} & set(params)


@pytest.mark.parametrize(
    "search", [{"search": "grid"}, {"search": "random", "trials": 4}, {"search": "tpe", "trials": 4}]
)
def test_what_two_keys_decide_together_is_not_shared(search: dict[str, Any]):
    """SwAV's paper recipe alone ends above 0, and neither of the two values does beside the other's first."""
    question = a_sweep({"method": ["simclr", "swav"], "recipe": ["small", "paper"]}, **search)
    alone = {question.variant({"method": m, "recipe": r}).optimizer.final_lr for m, r in
             (("simclr", "small"), ("swav", "small"), ("simclr", "paper"))}  # fmt: skip
    assert alone == {0.0}
    assert sweep_params(question)["optimizer.final_lr"] == "several"
    assert sweep_params(question)["epochs"] == 10


def test_training_a_trial_again_is_an_ordinary_run():
    """What the sweep imposes (no test set, its share of cores, its experiment) is not part of the run's file."""
    question = a_sweep({"optimizer.lr": [1e-3, 1e-2]}, search="grid", cpus_per_trial=2)
    point = points(question)[0]
    alone, trial = point.alone(question), point.run(question)
    assert (alone.tracking.experiment, alone.evaluate.test, alone.threads, alone.device) == (
        "eagleray", True, None, "auto")  # fmt: skip
    assert (trial.tracking.experiment, trial.evaluate.test, trial.threads, trial.device) == ("test", False, 2, "cpu")
    assert read_run(alone.file()) == alone


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({"method.temperature": [0.1, 0.5, 0.1]}, r"vary\.method\.temperature lists 0\.1 twice"),
        ({"method.temperature": [0.1, "1e-1"]}, r"vary\.method\.temperature lists 0\.1 and 1e-1, which are the same"),
        ({"seed": [1, 1]}, r"vary\.seed lists 1 twice"),
        ({"batch_size": [64, 128], "augment.flip": [0, 0.5, 0.0]}, r"vary\.augment\.flip lists 0 and 0\.0, which are"),
        ({"run": [{"method": "byol"}, {"method": {"name": "byol"}}]}, r"vary\.run lists byol twice"),
        ({"run": [{"method": "simclr"}, {"epochs": 10}]}, r"vary\.run lists simclr and epochs=10, which are the same"),
        (
            {"run": [{"epochs": 2}, {"epochs": 2, "seed": 1}]},
            r"epochs=2 and epochs=2 seed=1, which differ in their seed",
        ),
    ],
)
def test_a_value_is_listed_once(vary: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        a_sweep(vary, search="grid")
    with pytest.raises(ConfigError, match=said):
        a_sweep(vary, search="random", trials=2)


def test_equal_values_of_different_keys_are_no_repetition():
    assert len(points(a_sweep({"augment.flip": [0.0, 0.5], "augment.grayscale": [0.0, 0.5]}, search="grid"))) == 4

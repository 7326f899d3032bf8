"""Run and sweep files: defaults, overrides, and what is said about mistakes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eagleray.config import Run, Sweep, changed, load_run, load_sweep, read_run, run_keys, validated
from eagleray.config.nested import merged, parse_override
from eagleray.config.registry import declared
from eagleray.config.run import epochs_of
from eagleray.config.search_points import as_trial
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.ranges import Choice, IntRange, LogUniform, Uniform
from method_cases import needed

METHODS = sorted(declared("method"))


def error_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(None, list(overrides))
    return str(caught.value)


def sweep(**changes: Any) -> Sweep:
    file = {"name": "s", "vary": {"batch_size": [64, 128]}, "search": "grid", **changes}
    return validated(Sweep, {key: value for key, value in file.items() if value is not ...})


def test_nothing_said_is_simclr_on_the_digits():
    run = load_run(None, [])
    assert (run.method.name, run.encoder.name, run.data.name) == ("simclr", "convnet", "digits")
    assert run.file()["method"]["temperature"] == 0.2  # the small recipe's, not the paper's


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", ["small", "paper"])
def test_a_resolved_run_file_says_the_whole_run(method: str, recipe: str):
    run = load_run(None, [f"method={method}", f"recipe={recipe}", *needed(method)])
    assert validated(Run, yaml.safe_load(yaml.safe_dump(run.file()))) == run


@pytest.mark.parametrize("method", METHODS)
def test_every_key_of_a_resolved_file_is_known_and_described(method: str):
    tree = load_run(None, [f"method={method}", *needed(method)]).file()
    known = run_keys(tree)
    leaves = {f"{section}.{key}" for section, values in tree.items() if isinstance(values, dict) for key in values}
    assert leaves - {"method.name", "encoder.name", "data.name"} <= set(known)
    plain = {key for key in known if key.split(".")[0] not in ("method", "encoder", "data", "labels")}
    assert [key for key in plain if "." in key and not known[key].description] == []


def test_the_paper_recipe_brings_the_papers_settings():
    run = load_run(None, ["recipe=paper"])
    assert (run.method.config.model_dump()["temperature"], run.optimizer.name) == (0.1, "lars")


def test_single_keys_override_the_recipe():
    small = load_run(None, [])
    run = load_run(None, ["optimizer.lr=1e-3"])
    assert run.optimizer == small.optimizer.model_copy(update={"lr": 1e-3})


def test_a_name_alone_is_short_for_the_section():
    assert load_run(None, ["method=byol"]) == load_run(None, ["method.name=byol"])


def test_the_order_of_overrides_is_all_one():
    overrides = ["method.momentum=0.9", "method=byol", "encoder.stem=small", "encoder=resnet18"]
    assert load_run(None, overrides) == load_run(None, overrides[::-1])


def test_another_name_drops_the_settings_of_the_one_in_the_file(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("method: {name: simclr, temperature: 0.3}\nepochs: 3\n")
    assert load_run(file, []).method.config.model_dump()["temperature"] == 0.3
    run = load_run(file, ["method=byol", "method.momentum=0.9"])
    assert (run.method.name, run.method.config.model_dump()["momentum"], run.epochs) == ("byol", 0.9, 3)


def test_a_method_that_needs_a_vit_gets_one():
    assert load_run(None, ["method=mae"]).encoder.name == "vit_tiny"
    assert load_run(None, ["method=mae", "encoder.patch_size=2"]).encoder.config.model_dump()["patch_size"] == 2


def test_a_method_that_needs_labels_gets_some():
    labels = load_run(None, ["method=fixmatch"]).labels
    assert labels is not None
    assert (labels.per_class, labels.fraction) == (40, None)


def test_a_fraction_of_labels_replaces_a_number_of_them():
    run = load_run(None, ["method=fixmatch", "labels.fraction=0.1"])
    for again in (run, read_run(run.file()), changed(run, {"seed": 3})):
        assert again.labels is not None
        assert (again.labels.per_class, again.labels.fraction, again.labels.ratio) == (None, 0.1, 7)
    back = changed(run, {"labels.fraction": None, "labels.per_class": 5}).labels
    assert back is not None
    assert (back.per_class, back.fraction) == (5, None)


def test_a_number_of_validation_images_replaces_a_share():
    run = load_run(None, ["data.validation_per_class=4"])
    for again in (run, read_run(run.file()), changed(run, {"seed": 3})):
        assert (again.data.settings.validation, again.data.settings.validation_per_class) == (None, 4)


@pytest.mark.parametrize("key", ["data.imbalance", "labels.imbalance"])
def test_imbalance_may_be_varied_over_its_declared_range(key: str):
    run = {"method": "fixmatch", "data": {"name": "digits"}}
    sweep = validated(Sweep, {"name": "s", "run": run, "vary": {key: "declared"}, "trials": 2})
    assert sweep.ranges()[key] == LogUniform(1, 200)
    assert len(list(sweep.probes())) == 3


def test_steps_replace_epochs():
    run = load_run(None, ["steps=1000"])
    for again in (run, read_run(run.file()), changed(run, {"seed": 3})):
        assert (again.epochs, again.steps) == (None, 1000)
    back = changed(run, {"steps": None, "epochs": 5})
    assert (back.epochs, back.steps) == (5, None)


@pytest.mark.parametrize(
    ("typed", "length"),
    [
        (["recipe=paper"], (None, 2**20)),
        (["recipe=small"], (10, None)),
        (["recipe=paper", "epochs=3"], (3, None)),
        (["recipe=paper", "steps=9"], (None, 9)),
        (["recipe=paper", "steps=null"], (10, None)),
        (["recipe=paper", "method=simclr"], (10, None)),
    ],
)
def test_the_papers_updates_are_the_length_of_its_recipe_unless_another_is_typed(typed: list[str], length: object):
    run = load_run(None, ["method=fixmatch", *typed])
    assert (run.epochs, run.steps) == length
    assert read_run(run.file()) == run


def test_the_epochs_of_steps_follow_from_the_images_and_the_last_may_be_short():
    file = load_run(None, ["steps=10", "batch_size=32"]).file()
    assert [epochs_of(file, samples) for samples in (None, 64, 95, 96, 10_000)] == [None, 5, 5, 4, 1]
    assert epochs_of(load_run(None, ["epochs=7"]).file(), None) == 7


def test_a_sweep_may_vary_steps():
    sweep = validated(Sweep, {"name": "s", "vary": {"steps": [10, 20]}})
    assert [(run.epochs, run.steps) for run in sweep.probes()] == [(None, 10), (None, 20)]
    with pytest.raises(ConfigError, match="steps=10 and epochs=3 exclude each other"):
        validated(Sweep, {"name": "s", "run": {"epochs": 3}, "vary": {"steps": [10, 20]}})


@given(st.floats(1e-6, 1e3))
def test_numbers_are_read_however_yaml_writes_them(value: float):
    for text in (repr(value), f"{value:.17e}", f"{value:.17e}".replace("e-0", "e-")):
        assert load_run(None, [f"optimizer.lr={text}"]).optimizer.lr == value


@given(st.recursive(st.integers() | st.none(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner)))
def test_laying_a_tree_over_itself_or_over_nothing_changes_nothing(tree: Any):
    tree = {"top": tree}
    assert merged(tree, tree) == merged(tree, {}) == merged({}, tree) == tree


def test_runs_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        load_run(None, []).epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


MISTAKES = [
    (["epochz=3"], "unknown key epochz; did you mean epochs?"),
    (["temperature=0.1"], "unknown key temperature; did you mean method.temperature?"),
    (["method.temprature=0.1"], "unknown key method.temprature; did you mean method.temperature?"),
    (["method.momentum=0.9"], "unknown key method.momentum: simclr has no such setting, byol, "),
    (
        ["encoder.stem=small"],
        "unknown key encoder.stem: convnet has no such setting, resnet18, resnet34, resnet50 and timm have",
    ),
    (["data.root=x"], "unknown key data.root: digits has no such setting"),
    (["augment.flipp=1"], "unknown key augment.flipp; did you mean augment.flip?"),
    (["method=simclrr"], "there is no method 'simclrr'; did you mean simclr?"),
    (["method=3"], "method=3 is not a name; `eagleray methods` lists them"),
    (["encoder=resnet"], "there is no encoder 'resnet'; did you mean resnet"),
    (["data=digit"], "there is no dataset 'digit'; did you mean digits?"),
    (["method=no_such_lab.fancy"], "no such module can be imported"),
    (["data=folder"], "data.root is missing (the folder"),
    (["epochs=ten"], "epochs=ten is not a whole number (allowed: >= 1)"),
    (["epochs=2.5"], "epochs=2.5 is not a whole number"),
    (["epochs=true"], "epochs=true is not a number (allowed: >= 1)"),
    (["epochs=0"], "epochs=0 is out of range (allowed: >= 1)"),
    (["steps=0"], "steps=0 is out of range (allowed: >= 1)"),
    (["steps=2.5"], "steps=2.5 is not a whole number"),
    (["steps=100", "epochs=3"], "steps=100 and epochs=3 exclude each other; set one to null"),
    (["epochs=null"], "epochs=null leaves nothing to train; set it, or steps"),
    (["batch_size=1"], "batch_size=1 is out of range (allowed: >= 2)"),
    (["augment.flip=1.5"], "augment.flip=1.5 is out of range (allowed: 0 to 1)"),
    (["data.imbalance=0.5"], "data.imbalance=0.5 is out of range (allowed: >= 1)"),
    (["method=fixmatch", "labels.imbalance=0"], "labels.imbalance=0 is out of range (allowed: >= 1)"),
    (
        ["data.validation=0.1", "data.validation_per_class=4"],
        "data.validation_per_class=4 and data.validation=0.1 exclude each other; set one to null",
    ),
    (
        ["data.validation=null"],
        "data.validation=null says nothing; set it (0: hold out none), or data.validation_per_class",
    ),
    (["data.validation=0.9"], "data.validation=0.9 is out of range (allowed: 0 to 0.5)"),
    (["method.temperature=-1"], "method.temperature=-1 is out of range (allowed: > 0)"),
    (["method=mae", "method.mask_ratio=1"], "method.mask_ratio=1 is out of range (allowed: > 0 and < 1)"),
    (["method=mae", "method.decoder_dim=100"], "method.decoder_dim=100 is out of range (allowed: >= 16 and a multiple"),
    (["optimizer.lr=fast"], "optimizer.lr=fast is not a number (allowed: > 0)"),
    (["optimizer.lr=.inf"], "optimizer.lr=inf is not a number (allowed: > 0)"),
    (["precision=fp16"], "precision=fp16 is not one of auto, fp32, bf16; did you mean bf16?"),
    (["augment.only=[crop, jitterr]"], "augment.only=jitterr is not one of crop, "),
    (["augment.only=crop"], "augment.only=crop is not a list"),
    (["augment=3"], "augment=3 is not a section of keys"),
    (
        ["method=finetune", "encoder=resnet18"],
        "encoder=resnet18: finetune starts from a trained run; use encoder=pretrained encoder.run=DIRECTORY",
    ),
    (["method=finetune"], "encoder.run is missing (directory of a finished run)"),
    (["method=mae", "encoder=resnet18"], "encoder=resnet18: mae works on a ViT's patches; use encoder=vit_tiny"),
    (["workers=3"], "batch_size=256 cannot be shared by workers=3; the nearest that can is 255"),
    (["labels.per_class=4"], "labels: simclr uses no labels"),
    (
        ["method=fixmatch", "labels.per_class=4", "labels.fraction=0.1"],
        "labels.per_class=4 and labels.fraction=0.1 exclude each other; set one to null",
    ),
    (["method=fixmatch", "labels.per_class=null"], "labels.per_class=null leaves no label; set it, or labels.fraction"),
    (["method=fixmatch", "labels.fraction=0"], "labels.fraction=0 is out of range (allowed: > 0 and <= 1)"),
    (["method=fixmatch", "labels.fraction=10"], "labels.fraction=10 is out of range (allowed: > 0 and <= 1)"),
    (["method=fixmatch", "labels.fraction=10%"], "labels.fraction=10% is not a number"),
    (
        ["data=folder", "data.root=x", "data.labels=folder"],
        "data.labels: 'folder' is not one of auto, folders, none or a file (.csv, .tsv, .txt); did you mean folders?",
    ),
    (["method=fixmatch", "batch_size=4"], "labels.ratio=7 leaves 0 labelled images in a step of batch_size=4, which"),
    (["method=fixmatch", "batch_size=128", "workers=4"], "workers=4 cannot share; the nearest that fits is 8"),
    (["optimizer.name=adamw"], "optimizer.lr is missing: the recipe's 0.005 is for muon, not for adamw"),
    (
        ["optimizer.name=adamw", "optimizer.lr=2e-3", "optimizer.nesterov=true"],
        "optimizer.nesterov has no effect with optimizer.name=adamw",
    ),
    (
        ["optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.beta2=0.9"],
        "optimizer.beta2 has no effect with optimizer.name=sgd",
    ),
    (["optimizer.name=muon", "optimizer.nesterov=true"], "optimizer.nesterov has no effect with optimizer.name=muon"),
    (["epochs"], "'epochs' is not a setting; write key=value"),
    (["=3"], "'=3' is not a setting"),
    (["augment.only=[crop"], "augment.only: '[crop' is not YAML"),
]


@pytest.mark.parametrize(("overrides", "said"), MISTAKES, ids=[" ".join(overrides) for overrides, _ in MISTAKES])
def test_a_mistake_is_said_in_one_line_that_names_the_key_and_the_remedy(overrides: list[str], said: str):
    message = error_of(*overrides)
    assert said in message
    assert "\n" not in message


def test_several_mistakes_are_all_said():
    assert error_of("epochs=0", "augment.flip=2").splitlines() == [
        "augment.flip=2 is out of range (allowed: 0 to 1)",
        "epochs=0 is out of range (allowed: >= 1)",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: [1\nseed: 2", "is not YAML: expected"),
        ("- epochs\n- seed", "has no settings"),
        ("epochs", "has no settings"),
        ("3: 4", "has no settings"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_run_file_is_named(tmp_path: Path, text: str, said: str):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_run(file, [])
    assert str(caught.value).startswith(f"{file} ")
    assert said in str(caught.value)


def test_an_empty_file_is_all_defaults(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert load_run(tmp_path / "run.yaml", []) == load_run(None, [])


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"there is no file .*gone\.yaml"):
        load_run(tmp_path / "gone.yaml", [])


def test_ranges_are_read_as_they_are_written():
    varied = sweep(
        search="random",
        trials=4,
        vary={
            "optimizer.lr": {"log_uniform": ["1e-4", 0.1]},
            "augment": {"flip": {"uniform": [0, 1]}, "only": [["crop"], ["crop", "flip"]]},
            "batch_size": {"int": [32, 64]},
            "method.temperature": "declared",
        },
    )
    assert varied.ranges() == {
        "optimizer.lr": LogUniform(1e-4, 0.1),
        "augment.flip": Uniform(0, 1),
        "augment.only": Choice(["crop"], ["crop", "flip"]),
        "batch_size": IntRange(32, 64),
        "method.temperature": LogUniform(0.05, 1.0),
    }


def test_a_grid_is_checked_point_by_point():
    runs = list(sweep(vary={"batch_size": [64, 128], "augment.flip": [0, 0.5]}).probes())
    assert [(run.batch_size, run.augment.flip) for run in runs] == [(64, 0), (64, 0.5), (128, 0), (128, 0.5)]


def test_the_runs_of_a_sweep_bear_its_name():
    assert as_trial(sweep(), sweep().variant({"batch_size": 64})).tracking.experiment == "s"


def test_settings_varied_beside_a_name_belong_to_it_in_any_order():
    variant = sweep(run={"method": {"name": "simclr", "temperature": 0.3}}).variant(
        {"method.momentum": 0.9, "method": "byol"}
    )
    assert variant.method.config.model_dump()["momentum"] == 0.9


def test_overrides_reach_the_sweep_and_its_run(tmp_path: Path):
    file = tmp_path / "sweep.yaml"
    file.write_text("name: s\nsearch: grid\nrun: {epochs: 5}\nvary:\n  augment.flip: [0, 1]\n  batch_size: [64]\n")
    changed = load_sweep(file, ["seeds=2", "epochs=3", "vary.augment.flip=[0, 0.5]", "method=byol"])
    run = changed.variant({})
    assert (changed.seeds, run.epochs, run.method.name) == (2, 3, "byol")
    assert changed.ranges() == {"augment.flip": Choice(0, 0.5), "batch_size": Choice(64)}


WRONG_SWEEPS = [
    ({"vary": ...}, "vary is missing"),
    ({"name": ...}, "name is missing"),
    ({"name": "a/b"}, "name=a/b cannot name a folder"),
    ({"name": ".."}, "name=.. cannot name a folder"),
    ({"vary": {}}, "vary"),
    ({"trails": 3}, "unknown key trails; did you mean trials?"),
    ({"search": "grdi"}, "search: there is no search 'grdi'; did you mean grid?"),
    ({"search": "random"}, "trials is missing: search=random needs the number of points to try"),
    ({"trials": True}, "trials=true is not a number"),
    ({"vary": {"optimizer.lr": {"uniform": [0.1, 1]}}}, "vary.optimizer.lr is a range, but search=grid needs a list"),
    ({"vary": {"batch_size": 64}}, "vary.batch_size: write a list of values"),
    ({"vary": {"batch_size": []}}, "vary.batch_size: write a list of values"),
    ({"vary": {"optimizer.lr": {"log_uniform": [0, 1]}}}, "vary.optimizer.lr: log_uniform needs a positive lower end"),
    ({"vary": {"optimizer.lr": {"uniform": [1, 0]}}}, "vary.optimizer.lr: a range goes from a lower to a higher"),
    ({"vary": {"optimizer.lr": {"uniform": ["a", 1]}}}, "vary.optimizer.lr: uniform takes two numbers"),
    ({"vary": {"optimizer.lr": {"uniform": 3}}}, "vary.optimizer.lr: uniform takes two numbers"),
    ({"vary": {"batch_size": {"int": [0.5, 3]}}}, "vary.batch_size: int takes two whole numbers"),
    ({"vary": {"seed": "declared"}}, "vary.seed: it declares no range"),
    ({"vary": {"batchsize": [1, 2]}}, "unknown key batchsize; did you mean batch_size?"),
    ({"vary": {"batch_size": [64, 1]}}, "batch_size=1 is out of range (allowed: >= 2)"),
    ({"vary": {"batch_size": {"uniform": [32, 64]}}, "search": "random", "trials": 2}, "is not a whole number"),
    ({"vary": {"batch_size": {"int": [32, 64]}}, "search": "random", "trials": 2, "run": {"workers": 2}}, "shared"),
    ({"vary": {"run": ["simclr"]}}, "vary.run takes variants of the run"),
    ({"vary": {"run": [{"method": "mae"}, {"method": "simclrr"}]}}, "there is no method 'simclrr'"),
    ({"vary": {"seed": [0, 1]}, "seeds": 2}, "vary.seed and seeds exclude each other"),
    ({"run": {"epochz": 3}}, "unknown key epochz; did you mean epochs?"),
    ({"scheduler": "pbt", "search": "random", "trials": 4}, "vary.batch_size cannot change during training"),
    ({"grace": 3}, "grace=3 has no effect with scheduler=none"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG_SWEEPS, ids=[said for _, said in WRONG_SWEEPS])
def test_a_mistake_in_a_sweep_is_said(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        sweep(**changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_is_a_tree():
    assert parse_override("a.b=[1, x]") == {"a": {"b": [1, "x"]}}
    assert parse_override("data.root=a=b") == {"data": {"root": "a=b"}}

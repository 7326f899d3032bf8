"""Floors are what they say, each is measured once for every seed, and k-means patches are those of the paper."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from eagleray.app.plugin import write
from eagleray.config import Run, Sweep, load_run, validated
from eagleray.config.floors import MEANINGS, FloorKind
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import images_of
from eagleray.runs.floors import KINDS, floors, measure, pixels
from eagleray.runs.preflight import planned

TINY = ["data.limit=160", "batch_size=40", "epochs=3", "encoder.width=8", "threads=1", "precision=fp32", "device=cpu"]


def run_of(*more: str) -> Run:
    return load_run(None, [*TINY, *more])


def test_every_kind_has_its_meaning_and_its_features():
    assert set(get_args(FloorKind)) == set(MEANINGS) == set(KINDS)


def test_each_encoder_and_data_set_has_its_floors_once():
    masked = load_run(None, [*(setting for setting in TINY if not setting.startswith("encoder")), "method=mae"])
    tuned = load_run(None, [TINY[0], "method=finetune", "encoder=pretrained", "encoder.run=somewhere"])
    runs = [run_of(), run_of("method=byol"), run_of("encoder.width=16"), masked, tuned]
    assert [
        (floor.kind, floor.label, floor.point) for floor in floors([*runs, *runs], ["pixels", "random"], "knn")
    ] == [
        ("pixels", "raw pixels", "raw pixels digits"),
        ("random", "random init", "random init convnet digits"),
        ("random", "random init", "random init convnet digits 2"),
        ("random", "random init", "random init vit_tiny digits"),
        ("random", "source encoder", "source encoder pretrained digits"),
    ]


def test_pixels_are_no_floor_of_a_metric_that_grows_with_the_width_of_features():
    for metric, kinds in {"label_free": ["random"], "rank": ["random"], "gap": ["random", "pixels"]}.items():
        assert [floor.kind for floor in floors([run_of()], ["random", "pixels"], metric)] == kinds


def test_the_floor_of_a_file_of_ones_own_is_named_without_its_folder(tmp_path: Path):
    """Its name is that of a folder beside the trials, where reports look for it."""
    write("encoder", tmp_path / "fancy.py")
    (floor,) = floors([load_run(None, [*TINY[:3], f"encoder={tmp_path / 'fancy.py'}"])], ["random"], "knn")
    assert floor.name == "random init fancy digits seed0"


@pytest.mark.parametrize("search", [{"search": "grid"}, {"search": "tpe", "trials": 5}])
def test_a_floor_is_measured_with_every_seed_of_the_trials(search: dict):
    tree = {"name": "s", "vary": {"method.temperature": [0.1, 0.2]}, "seeds": 3, "run": {"seed": 4}, **search}
    question = validated(Sweep, tree)
    found = list(floors(planned(question), question.floor, question.metric))
    assert [(floor.kind, floor.run.seed) for floor in found] == [
        (kind, seed) for seed in (4, 5, 6) for kind in ("random", "pixels")
    ]
    assert len({floor.name for floor in found}) == 6
    assert found[0].tags == {
        "kind": "floor",
        "floor": "random",
        "point": "random init convnet digits",
        "label": "random init",
    }


@pytest.mark.parametrize(("floor", "words"), [("none", "floor=none is not a list"), (["pixel"], "mean pixels")])
def test_an_unknown_floor_is_refused(floor: object, words: str):
    with pytest.raises(ConfigError, match=words):
        validated(Sweep, {"name": "s", "vary": {"seed": [0]}, "search": "grid", "floor": floor})
    assert validated(Sweep, {"name": "s", "vary": {"seed": [0]}, "search": "grid", "floor": []}).floor == ()


def test_raw_pixels_are_evaluated_as_they_are():
    """Compare with scikit-learn's neighbours on the pixels themselves."""
    run = run_of("evaluate.knn.k=1", "evaluate.linear.when=never")
    data = images_of(run)
    assert data.validation is not None
    flat = []
    for images in (data.train, data.validation):
        batch = next(images.batches([torch.arange(len(images))]))
        flat.append((batch.flatten(1).numpy() / 255.0 - np.mean(data.info.mean)) / np.mean(data.info.std))
    neighbours = KNeighborsClassifier(1, metric="cosine").fit(flat[0], data.train.labels)
    expected = neighbours.score(flat[1], data.validation.labels)
    assert measure("pixels", run)["knn"] == pytest.approx(expected, abs=1e-6)


def test_large_images_are_shrunk_to_be_compared():
    images = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).view(2, 3, 64, 64)
    assert pixels(images).shape == (2, 3 * 32 * 32)
    assert pixels(images)[0, 0] == images[0, 0, :2, :2].mean()
    assert torch.equal(pixels(images[..., :32, :32]), images[..., :32, :32].flatten(1))


def test_what_grows_with_the_width_of_features_is_measured_of_encoders_alone():
    """3,072 pixels have a higher rank than 256 features, whatever either is worth."""
    run = run_of("evaluate.linear.when=never")
    widths = {"rank", "rankme", "nesum", "participation_ratio", "stable_rank", "self_cluster"}
    assert widths <= set(measure("random", run))
    for kind in ("pixels", "kmeans"):
        measured = measure(kind, run)
        assert "knn" in measured
        assert not widths & set(measured)


@pytest.mark.parametrize("kind", ["random", "kmeans"])
def test_a_floor_is_a_function_of_the_seed(kind: FloorKind):
    run = run_of("evaluate.linear.when=never")
    assert measure(kind, run) == measure(kind, run)
    assert measure(kind, run) != measure(kind, run_of("evaluate.linear.when=never", "seed=1"))


@pytest.mark.slow
def test_k_means_patches_distinguish_digits_better_than_a_random_network():
    run = load_run(None, ["data.validation=0.3", "threads=1", "precision=fp32", "device=cpu"])
    kmeans, random = measure("kmeans", run), measure("random", run)
    assert kmeans["linear"] > 0.96
    assert kmeans["knn"] > random["knn"] + 0.05


def test_k_means_never_sees_a_label(monkeypatch: pytest.MonkeyPatch):
    run = run_of("evaluate.linear.when=never")
    without = ("std", "dead", "uniformity")
    expected = {name: measure("kmeans", run)[name] for name in without}
    loaded = images_of(run)
    for images in (loaded.train, loaded.validation, loaded.test):
        if images is not None:
            images.labels = None
    monkeypatch.setattr("eagleray.runs.assemble.load_data", lambda *_: loaded)
    measured = measure("kmeans", run)
    assert "knn" not in measured
    assert {name: measured[name] for name in without} == expected

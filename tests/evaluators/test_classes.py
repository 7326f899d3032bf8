"""Clusters, retrieval and classes against their formulas, scikit-learn, and cases with a known answer."""

import csv
import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    normalized_mutual_info_score,
    recall_score,
)

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.features import Features
from eagleray.evaluators import few_labels as few_module
from eagleray.evaluators import retrieval as module
from eagleray.evaluators.clusters import clusters, said
from eagleray.evaluators.few_labels import few_labels
from eagleray.evaluators.linear import linear, train_probe
from eagleray.evaluators.per_class import confusion, per_class
from eagleray.evaluators.retrieval import retrieval


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    every = Features(images.float(), labels.long())
    return every.at(torch.arange(600)), every.at(torch.arange(600, 800))


def apart(classes: int = 4, each: int = 25, width: int = 6) -> Features:
    """Classes that lie far from each other."""
    draw = np.random.default_rng(0)
    centres = np.repeat(100 * draw.standard_normal((classes, width)), each, 0)
    labels = torch.arange(classes).repeat_interleave(each)
    return Features(torch.from_numpy(centres + draw.standard_normal(centres.shape)).float(), labels)


# retrieval


def means(answers: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: values.mean().item() for name, values in answers.items()}


def test_retrieval_is_its_formula(digits: tuple[Features, Features], monkeypatch: pytest.MonkeyPatch):
    train, queries = digits
    x, y = (each.features.double().numpy() for each in digits)
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y))
    found = {"precision_at_1": [], "precision_at_10": [], "mean_average_precision": []}
    for query, label in zip(y, queries.targets().numpy(), strict=True):
        same, cosines = train.targets().numpy() == label, x @ query
        order = np.argsort(-cosines)
        found["precision_at_1"].append(same[order[0]])
        found["precision_at_10"].append(same[order[:10]].mean())
        found["mean_average_precision"].append(average_precision_score(same, cosines))
    expected = {name: np.mean(values) for name, values in found.items()}
    assert means(retrieval(train, queries)) == pytest.approx(expected, abs=2e-4)  # float32 may swap neighbours
    monkeypatch.setattr(module, "BLOCK", 1)  # a query at a time
    assert means(retrieval(train, queries)) == pytest.approx(expected, abs=2e-4)


def test_retrieval_of_classes_that_lie_apart_is_perfect_and_of_none_is_chance():
    good = apart()
    assert set(means(retrieval(good, good)).values()) == {1}
    mixed = Features(torch.ones(100, 3), torch.arange(100) % 4)
    assert means(retrieval(mixed, mixed))["precision_at_10"] == pytest.approx(0.25, abs=0.06)


def test_queries_without_an_answer_are_left_out():
    good = apart()
    strange = Features(good.features, good.targets() + 2)  # half of the classes have no training image
    assert not len(retrieval(good, strange.at(strange.targets() > 3))["precision_at_1"])
    known = strange.at(strange.targets() < 4)
    assert means(retrieval(good, strange)) == means(retrieval(good, known))
    with pytest.raises(ConfigError, match="no labels"):
        retrieval(Features(good.features), good)


# clusters


def test_clusters_that_are_the_classes():
    found = clusters(apart())
    assert {name: found[name] for name in ("nmi", "ari", "purity", "homogeneity", "completeness")} == pytest.approx(
        dict.fromkeys(("nmi", "ari", "purity", "homogeneity", "completeness"), 1)
    )


def test_too_few_clusters_join_classes_and_too_many_split_them():
    found = clusters(apart())
    assert found["homogeneity_half"] < 0.6
    assert found["completeness_half"] == pytest.approx(1)
    assert found["homogeneity_twice"] == pytest.approx(1)
    assert found["completeness_twice"] < 0.8


def test_purity_and_nmi_are_their_formulas(digits: tuple[Features, Features]):
    from sklearn.cluster import KMeans

    train, _ = digits
    guessed = KMeans(10, n_init=4, random_state=3).fit_predict(train.features.numpy())
    truth = train.targets().numpy()
    found = clusters(train, seed=3)
    purity = sum(np.bincount(truth[guessed == number]).max() for number in range(10)) / len(truth)
    assert found["purity"] == pytest.approx(purity)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(truth, guessed))
    assert 0.5 < found["ari"] < found["purity"] < 1


def test_clusters_need_classes():
    good = apart()
    assert clusters(Features(good.features, good.targets() * 0)) == {}
    few = good.at(torch.arange(0, 100, 25))
    assert clusters(few)["purity"] == 1  # four images of four classes
    with pytest.raises(ConfigError, match="no labels"):
        clusters(Features(good.features))


def test_under_and_over_clustering_are_said():
    good = apart()
    found = clusters(good)
    few, many = f"{found['homogeneity_half']:.2f}", f"{found['completeness_twice']:.2f}"
    assert said(found, {"": 4, "_half": 2, "_twice": 8}) == (
        f"k-means beside 4 classes: 2 clusters join classes: under-clustering (homogeneity {few}, completeness 1.00); "
        "4 clusters split and join classes alike (homogeneity 1.00, completeness 1.00); "
        f"8 clusters split classes: over-clustering (homogeneity 1.00, completeness {many})"
    )


# each class


def test_classes_are_scikit_learns(digits: tuple[Features, Features]):
    train, test = digits
    test = Features(test.features + 3 * torch.randn(test.features.shape, generator=torch.manual_seed(0)), test.labels)
    predicted, truth = train_probe(train).predict(test.features), test.targets()
    counts = confusion(predicted, truth, 10)
    assert np.array_equal(counts.numpy(), confusion_matrix(truth, predicted))
    found = per_class(counts, [f"digit {number}" for number in range(10)])
    assert found.numbers["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    recalls = recall_score(truth, predicted, average=None)
    assert found.numbers["worst_class"] == pytest.approx(recalls.min())
    heads, *rows = found.tables["per_class"]
    assert heads == ["class", "images", "right", "low", "high"]
    assert [row[2] for row in rows] == pytest.approx(sorted(recalls))
    for name, images, right, low, high in rows:
        number = int(str(name).removeprefix("digit "))
        assert images == (truth == number).sum()
        theirs = binomtest(round(float(right) * int(images)), int(images)).proportion_ci(0.95, "wilson")
        assert (low, high) == pytest.approx((theirs.low, theirs.high))
    low, high = found.intervals["balanced_accuracy"]
    assert low < found.numbers["balanced_accuracy"] < high


def test_the_most_frequent_confusions_come_first_and_classes_without_images_are_left_out():
    counts = torch.tensor([[7, 3, 0, 0], [1, 1, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]])
    found = per_class(counts, ["cat", "dog", "$ship", "鳥"])  # no formula, and a script that the font lacks
    assert found.words == ["dog is taken for cat: 1 of 2 images (50%)", "cat is taken for dog: 3 of 10 images (30%)"]
    assert [row[0] for row in found.tables["per_class"][1:]] == ["dog", "cat", "$ship"]
    assert found.images == 16
    assert found.numbers == pytest.approx({"balanced_accuracy": (0.7 + 0.5 + 1) / 3, "worst_class": 0.5})
    assert list(csv.reader(io.StringIO(found.files["confusion.csv"].decode())))[1] == ["cat", "7", "3", "0", "0"]
    with Image.open(io.BytesIO(found.files["confusion.png"])) as picture:
        assert len({*picture.convert("RGB").get_flattened_data()}) > 20


# few labels


def test_few_labels_are_as_many_of_each_class_as_asked_for(
    digits: tuple[Features, Features], monkeypatch: pytest.MonkeyPatch
):
    train, test = digits
    asked: list[dict[int, int]] = []

    def noted(few: Features, **more: object) -> object:
        asked.append(dict(Counter(few.targets().tolist())))
        return train_probe(few, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(few_module, "train_probe", noted)
    counts = torch.bincount(train.targets())
    few = {"three": counts.clamp(max=3), "tenth": (counts * 0.1).round().long()}
    found = means(few_labels(train, test, few, draws=2))
    assert asked == [dict.fromkeys(range(10), 3), dict(enumerate(few["tenth"].tolist()))] * 2
    assert 0.5 < found["three"] < found["tenth"] < 1
    assert found == means(few_labels(train, test, few, draws=2))
    assert found != means(few_labels(train, test, few, draws=2, seed=1))


def test_all_labels_are_the_linear_probe(digits: tuple[Features, Features]):
    train, test = digits
    every = few_labels(train, test, {"all": torch.bincount(train.targets())}, draws=1)
    assert every["all"].mean().item() == linear(train, test)["linear"]

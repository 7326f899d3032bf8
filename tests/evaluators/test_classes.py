"""Clusters and retrieval against their formulas, scikit-learn, and cases with a known answer."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, normalized_mutual_info_score

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.features import Features
from eagleray.evaluators import few_labels as few_module
from eagleray.evaluators import retrieval as module
from eagleray.evaluators.clusters import clusters
from eagleray.evaluators.few_labels import few_labels
from eagleray.evaluators.linear import linear, train_probe
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
    assert retrieval(train, queries) == pytest.approx(expected, abs=2e-4)  # float32 similarities may swap neighbours
    monkeypatch.setattr(module, "BLOCK", 1)  # a query at a time
    assert retrieval(train, queries) == pytest.approx(expected, abs=2e-4)


def test_retrieval_of_classes_that_lie_apart_is_perfect_and_of_none_is_chance():
    good = apart()
    assert set(retrieval(good, good).values()) == {1}
    mixed = Features(torch.ones(100, 3), torch.arange(100) % 4)
    assert retrieval(mixed, mixed)["precision_at_10"] == pytest.approx(0.25, abs=0.06)


def test_queries_without_an_answer_are_left_out():
    good = apart()
    strange = Features(good.features, good.targets() + 2)  # half of the classes have no training image
    assert retrieval(good, strange.at(strange.targets() > 3)) == {}
    assert (
        retrieval(good, strange)["precision_at_1"]
        == retrieval(good, strange.at(strange.targets() < 4))["precision_at_1"]
    )
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
    found = few_labels(train, test, few, draws=2)
    assert asked == [dict.fromkeys(range(10), 3), dict(enumerate(few["tenth"].tolist()))] * 2
    assert 0.5 < found["three"] < found["tenth"] < 1
    assert found == few_labels(train, test, few, draws=2)
    assert found != few_labels(train, test, few, draws=2, seed=1)


def test_all_labels_are_the_linear_probe(digits: tuple[Features, Features]):
    train, test = digits
    every = few_labels(train, test, {"all": torch.bincount(train.targets())}, draws=1)
    assert every["all"] == linear(train, test)["linear"]

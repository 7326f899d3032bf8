"""The evaluators against scikit-learn, against their formulas in numpy, and against cases with a known answer."""

import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.features import Features, accuracy
from eagleray.evaluators.collapse import collapse
from eagleray.evaluators.knn import knn
from eagleray.evaluators.linear import Standard, fit, linear, train_probe
from eagleray.evaluators.pairs import pairs

LINEAR, KNN = sys.modules[train_probe.__module__], sys.modules[knn.__module__]


def clusters(count: int, width: int = 20, classes: int = 4, seed: int = 0, spread: float = 2.5) -> Features:
    """Overlapping Gaussian clusters with dimensions of very different scale; the same clusters for any seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    x = centres[labels] + spread * torch.randn(count, width, generator=generator)
    return Features(x * torch.logspace(-2, 2, width) + 3, labels)


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    every = Features(images.float()[order], labels.long()[order])
    return every.at(torch.arange(1000)), every.at(torch.arange(1000, len(labels)))


# features


def test_features_refuse_what_cannot_be_judged():
    with pytest.raises(ConfigError, match=r"\[N, D\] and \[N\], not \[\[3, 2\], \[2\]\]"):
        Features(torch.zeros(3, 2), torch.zeros(2).long())
    with pytest.raises(ConfigError, match="not"):
        Features(torch.zeros(3))
    with pytest.raises(ConfigError, match="for 2 of 3 images"):
        Features(torch.tensor([[0.0, torch.nan], [1, 2], [torch.inf, 0]]))


@pytest.mark.parametrize("judge", [knn, linear])
def test_probes_refuse_splits_without_labels_or_images(judge):
    good, blind = clusters(10), Features(torch.zeros(5, 20))
    empty = good.at(torch.arange(0))
    for train, test, message in (
        (blind, good, "no labels"),
        (good, blind, "no labels"),
        (empty, good, "no images"),
        (good, empty, "no images"),
    ):
        with pytest.raises(ConfigError, match=message):
            judge(train, test)


def test_accuracy_is_the_share_that_is_right():
    assert accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 4])) == 0.75


# kNN


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("block", [2**24, 3 * 300])
def test_knn_is_scikit_learns_for_every_k(monkeypatch, temperature, block):
    monkeypatch.setattr(KNN, "BLOCK", block)
    train, test = clusters(300, seed=1), clusters(100, seed=2)
    expected = []
    for k in (50, 1, 5, 20):
        reference = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
        ).fit(train.features.double(), train.targets())
        expected.append(reference.score(test.features.double(), test.targets()))
    assert 0.3 < min(expected) < max(expected) < 1
    assert len({*expected}) >= 3
    assert knn(train, test, [50, 1, 5, 20], temperature) == pytest.approx(expected, abs=1e-9)


def test_knn_on_digits(digits):
    assert min(knn(*digits, [200, 20, 5, 1])) > 0.93


def test_knn_takes_no_more_neighbours_than_there_are_images():
    train = Features(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    test = Features(torch.tensor([[1.0, 0.2], [0.1, 1.0]]), torch.tensor([0, 1]))
    assert knn(train, test, [200, 2]) == [1, 1]


def test_knn_gives_equal_votes_to_the_lower_label():
    train = Features(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([5, 2]))
    assert knn(train, train, [2]) == [0.5]
    assert knn(train, Features(train.features, torch.tensor([2, 2])), [2]) == [1]


def test_knn_stays_finite_at_a_tiny_temperature():
    train, test = clusters(50, seed=1), clusters(20, seed=2)
    assert knn(train, test, [10], temperature=1e-4) == knn(train, test, [1])


# linear probe


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
@pytest.mark.parametrize("block", [2**24, 4 * 7])
def test_fit_is_scikit_learns_logistic_regression(monkeypatch, penalty, block):
    monkeypatch.setattr(LINEAR, "BLOCK", block)
    train, test = clusters(200, seed=1), clusters(100, seed=2)
    x, labels = train.features.double(), train.targets()
    start = (x.new_zeros(4, 20), x.new_zeros(4))
    standard = Standard.of(x)
    weights, bias = standard.fold(*fit(x, labels, standard, penalty, start, iterations=500, tolerance=1e-14))
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (penalty * len(x)), tol=1e-9, max_iter=10_000)
    ).fit(x, labels)
    ours = (test.features.double() @ weights.T + bias).softmax(1)
    assert np.allclose(ours, reference.predict_proba(test.features.double()), atol=1e-5)


def test_it_is_said_if_no_held_out_image_can_choose_the_penalty():
    draw = torch.Generator().manual_seed(0)
    train, test = (Features(torch.randn(20, 3, generator=draw), torch.arange(20) % 2) for _ in range(2))
    unknown = Features(test.features, torch.full((20,), 7))
    with pytest.warns(
        UserWarning, match=r"of a class that the training images have: its strongest penalty is taken, 10$"
    ):
        linear(train, test, validation=unknown)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear(train, test, validation=test)


def test_probe_comes_close_to_the_best_penalty(digits):
    train, test = digits
    scores = []
    for strength in (1e-3, 1e-2, 1e-1, 1, 10):
        reference = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        scores.append(reference.fit(train.features, train.targets()).score(test.features, test.targets()))
    assert max(scores) - min(scores) > 0.02  # the choice matters here
    assert linear(train, test)["linear"] > max(scores) - 0.012


def test_probe_with_more_features_than_images_does_not_overfit():
    train, test = clusters(60, width=300, spread=8.0, seed=1), clusters(400, width=300, spread=8.0, seed=2)
    scores = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        .fit(train.features, train.targets())
        .score(test.features, test.targets())
        for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1)
    ]
    assert linear(train, test)["linear"] > max(scores) - 0.03


def test_more_images_than_the_penalty_is_chosen_on(monkeypatch):
    train, test = clusters(1500, seed=1), clusters(500, seed=2)
    everything = linear(train, test)["linear"]
    monkeypatch.setattr(LINEAR, "SAMPLE", 200)
    sampled = linear(train, test)["linear"]
    few = linear(train.at(torch.arange(200)), test)["linear"]
    assert abs(sampled - everything) < 0.015 < everything - few  # it is fitted on all of them nevertheless


def test_penalty_is_carried_over_as_one_on_the_sum_over_images(monkeypatch):
    calls: list[tuple[int, float]] = []

    def spy(features, targets, standard, penalty, *rest, **settings):
        calls.append((len(features), penalty))
        return fit(features, targets, standard, penalty, *rest, **settings)

    monkeypatch.setattr(LINEAR, "fit", spy)
    monkeypatch.setattr(LINEAR, "SAMPLE", 500)
    train_probe(clusters(2000, seed=1))
    *path, (count, penalty) = calls
    assert count == 2000
    assert penalty * count in [pytest.approx(images * tried) for images, tried in path]
    assert {images for images, _ in path} == {400}  # a fifth of the 500 is held out


def test_penalty_is_chosen_on_the_validation_images_given():
    train, other = clusters(100, seed=1), clusters(200, seed=2)
    agreeing = train_probe(train, train)
    contradicting = train_probe(train, Features(other.features, (other.targets() + 1) % 4))
    norms = [(probe.weights * train.features.std(0)).norm() for probe in (agreeing, contradicting)]
    assert norms[0] > 5 * norms[1]


def test_probe_does_not_mind_scale_offset_and_order_of_features():
    train, test = clusters(300, seed=1), clusters(200, seed=2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    changed = [Features(part.features[:, order] * 50 - 7, part.labels) for part in (train, test)]
    assert linear(*changed)["linear"] == pytest.approx(linear(train, test)["linear"], abs=0.011)


def test_probe_ignores_dead_and_repeated_features():
    train, test = clusters(300, seed=1), clusters(200, seed=2)

    def padded(part: Features) -> Features:
        constant = torch.full((len(part), 3), 1234.5)
        return Features(torch.cat([part.features, constant, part.features[:, :1]], 1), part.labels)

    assert linear(padded(train), padded(test))["linear"] == pytest.approx(linear(train, test)["linear"], abs=0.02)
    assert train_probe(padded(train)).weights[:, 20:23].eq(0).all()


def test_probe_of_collapsed_features_says_the_most_frequent_class():
    labels = torch.tensor([1] * 30 + [0] * 10)
    same = Features(torch.ones(40, 5), labels)
    assert linear(same, same) == {"linear": 0.75}


def test_probe_of_one_class_and_of_labels_with_gaps():
    train, test = clusters(100, seed=1), clusters(50, seed=2)
    alone = [Features(part.features, torch.full_like(part.targets(), 3)) for part in (train, test)]
    assert linear(*alone) == {"linear": 1.0}
    gaps = [Features(part.features, part.targets() * 1000 + 3) for part in (train, test)]
    assert linear(*gaps) == linear(train, test)


def test_probe_of_very_few_images():
    train, test = clusters(100, spread=0.2, seed=1), clusters(50, spread=0.2, seed=2)
    first_of_each = torch.stack([(train.targets() == label).nonzero()[0, 0] for label in range(4)])
    assert linear(train.at(first_of_each), test)["linear"] > 0.9
    with pytest.raises(ConfigError, match="at least two training images"):
        linear(train.at(torch.arange(1)), test)
    wide = Features(torch.zeros(4, 8193), torch.arange(4))
    with pytest.raises(ConfigError, match="at most 8192 features"):
        linear(wide, wide)


def test_probe_is_the_same_every_time_and_leaves_its_input_alone():
    train = clusters(200, seed=1)
    before = train.features.clone()
    with torch.no_grad():  # as evaluation usually runs
        first, second = train_probe(train, seed=4), train_probe(train, seed=4)
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(train.features, before)
    assert not first.weights.requires_grad


# collapse and pairs


def both(views: list[Tensor]) -> dict[str, float]:
    """All metrics of some views: collapse of the first, pairs of all."""
    return collapse(views[0]) | (pairs(views) if len(views) > 1 else {})


def in_numpy(views: list[np.ndarray]) -> dict[str, float]:
    """The formulas of `collapse` and `pairs`, pair by pair."""

    def effective_rank(x: np.ndarray) -> float:
        s = np.linalg.svd(x, compute_uv=False)
        p = s[s > 1e-6 * s.max()] / s.sum()
        return float(np.exp(-(p * np.log(p)).sum()))

    x = views[0]
    sphere = [view / np.linalg.norm(view, axis=1, keepdims=True) for view in views]
    z, count = sphere[0], len(x)
    potentials = [np.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i in range(count) for j in range(i)]
    metrics = {
        "std": z.std(0).mean() * np.sqrt(x.shape[1]),
        "rank": effective_rank(x - x.mean(0)),
        "rankme": effective_rank(x),
        "dead": np.mean(x.std(0) == 0),
        "uniformity": np.log(np.mean(potentials)),
    }
    two = [(a, b) for k, a in enumerate(sphere) for b in sphere[:k]]
    if two:
        metrics["negative"] = np.mean(
            [a[i] @ b[j] for a in sphere for b in sphere for i in range(count) for j in range(count) if i != j]
        )
        metrics["positive"] = np.mean([a[i] @ b[i] for a, b in two for i in range(count)])
        metrics["alignment"] = np.mean([((a - b) ** 2).sum(1).mean() for a, b in two])
        metrics["gap"] = metrics["positive"] - metrics["negative"]
        alike = np.array([a[i] @ b[i] for a, b in two for i in range(count)])
        apart = [a[i] @ b[j] for a in sphere for b in sphere for i in range(count) for j in range(count) if i != j]
        metrics["separability"] = np.mean([(alike > each).mean() + (alike == each).mean() / 2 for each in apart])
    return metrics


def some_views(count: int, width: int, views: int = 1, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 2, width) + 0.3
    return [x + 0.5 * torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(views)]


@pytest.mark.parametrize(("count", "width", "views"), [(30, 6, 1), (12, 40, 2), (17, 5, 4), (2, 3, 2)])
def test_collapse_metrics_are_their_formulas(count, width, views):
    x = some_views(count, width, views)
    for view in x:
        view[:, 0] = 0.25  # one dead dimension
    expected = in_numpy([view.numpy() for view in x])
    assert both(x) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_isotropic_embeddings():
    x = torch.randn(2048, 64, generator=torch.Generator().manual_seed(0))
    metrics = collapse(x)
    assert metrics["std"] == pytest.approx(1, abs=0.01)
    assert 62 < metrics["rank"] < 64
    assert metrics["dead"] == 0
    assert pairs([x, x])["negative"] == pytest.approx(0, abs=0.01)
    # E exp(-4 (1 - cos)) with cos of variance 1 / D: exp(-4 + 16 / 2D) to second order
    assert metrics["uniformity"] == pytest.approx(-4 + 8 / 64, abs=0.01)


@pytest.mark.parametrize("used", [1, 3])
def test_dimensional_collapse_shows_in_the_rank_only(used):
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(50, used, generator=generator))
    coordinates, _ = torch.linalg.qr(torch.randn(400, used, generator=generator) - 0.1)
    coordinates -= coordinates.mean(0)
    metrics = collapse((coordinates @ directions.T).float())
    assert metrics["rank"] == pytest.approx(used, rel=0.02)
    assert metrics["std"] > 0.5


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6, 3e8, -0.1])
def test_complete_collapse(value):
    same = torch.full((64, 16), value)
    nonzero = float(value != 0)
    assert both([same, same]) == pytest.approx(
        {
            "std": 0,
            "rank": 0,
            "rankme": nonzero,
            "dead": 1,
            "uniformity": 0,
            "positive": nonzero,
            "negative": nonzero,
            "alignment": 0,
            "gap": 0,
            "separability": 0.5,
        },
        abs=1e-6,
    )


def test_rounding_does_not_hide_complete_collapse():
    point = torch.randn(32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    metrics = collapse(point * (1 + 6e-8 * noise))
    assert (metrics["rank"], metrics["dead"]) == (0, 1)
    assert metrics["std"] < 1e-6
    assert metrics["rankme"] == pytest.approx(1)


def test_collapse_metrics_of_one_image_and_of_many():
    assert set(collapse(torch.ones(1, 4))) == {"std", "rank", "rankme", "dead"}
    assert set(pairs([torch.ones(1, 4)] * 2)) == {"positive", "alignment"}
    (x,) = some_views(5000, 4)
    assert collapse(x) == collapse(x[torch.arange(2048) * 5000 // 2048])  # bounded in cost, and the same each time


@pytest.mark.parametrize("embeddings", [torch.ones(0, 3), torch.ones(3), torch.full((2, 2), torch.nan)])
def test_collapse_refuses_what_has_no_answer(embeddings):
    with pytest.raises(ConfigError, match=r"embeddings"):
        collapse(embeddings)


@pytest.mark.parametrize("shapes", [[], [(2, 3)], [(2, 3), (3, 2)], [(0, 3), (0, 3)]])
def test_pairs_refuse_what_is_no_pair(shapes):
    with pytest.raises(ConfigError, match=r"embeddings must be 2 or more of one shape"):
        pairs([torch.ones(shape) for shape in shapes])


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 30), width=st.integers(1, 12), seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 70])
)
def test_collapse_metrics_do_not_mind_rotation_scale_or_order(count, width, seed, scale):
    views = some_views(count, width, 2, seed)
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))
    order = torch.randperm(count, generator=generator)
    metrics = both(views)
    assert both([view[order] * scale for view in views]) == pytest.approx(metrics, rel=1e-6, abs=1e-9)
    turned = both([view @ rotation for view in views])
    del metrics["std"], turned["std"]  # a mean of per-dimension deviations depends on the axes
    assert turned == pytest.approx(metrics, rel=1e-6, abs=1e-9)

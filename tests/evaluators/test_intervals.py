"""Intervals: against SciPy, by how often they hold the truth, and against leaving out one image after the other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from torch import Tensor

from eagleray.config.registry import declared
from eagleray.contracts.features import Features, intervals
from eagleray.contracts.interval import CONFIDENCE, about, of_mean, wilson
from eagleray.contracts.metric import LOOP
from eagleray.evaluators.few_labels import over_both
from eagleray.evaluators.invariance import Invariance, distances, invariance
from eagleray.evaluators.pairs import Pairs, pairs
from eagleray.evaluators.retrieval import Retrieval, retrieval
from eagleray.evaluators.spectrum import shares, spectrum

DRAWS = 2000


@pytest.mark.parametrize(("right", "images"), [(0, 10), (10, 10), (1, 3), (173, 200), (9_000, 10_000)])
def test_wilson_is_scipys(right: int, images: int):
    theirs = binomtest(right, images).proportion_ci(CONFIDENCE, "wilson")
    assert wilson(right / images, images) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_wilson_holds_the_truth_in_95_of_100_draws(share: float):
    right = np.random.default_rng(0).binomial(400, share, DRAWS) / 400
    held = [low <= share <= high for low, high in (wilson(each, 400) for each in right)]
    assert 0.93 < np.mean(held) < 0.97


def test_the_interval_of_a_mean_holds_the_truth_in_95_of_100_draws():
    random = np.random.default_rng(0)
    truth, sizes = np.array([0.97, 0.8, 0.6, 0.3]), np.array([30, 60, 200, 40])
    held = []
    for right in random.binomial(sizes, truth, (DRAWS, 4)) / sizes:
        low, high = of_mean((share, wilson(share, size)) for share, size in zip(right, sizes.tolist(), strict=True))
        held.append(low <= truth.mean() <= high)
    assert 0.93 < np.mean(held) < 0.97
    assert of_mean([(0.4, (0.3, 0.6))]) == pytest.approx((0.3, 0.6))


def test_means_of_images_have_the_normal_interval():
    x = torch.from_numpy(np.random.default_rng(0).gamma(2, size=500))
    half = norm.ppf(0.975) * x.std().item() / 500**0.5
    expected = x.mean().item() - half, x.mean().item() + half
    assert intervals({"a": x.mean().item()}, {"a": x, "b": x[:1]})["a"] == pytest.approx(expected)
    assert intervals({"b": 1.0}, {"b": x[:1]}) == {}
    assert about(2, 0) == (2, 2)


def test_few_labels_hold_the_truth_for_other_draws_and_other_images():
    random, held, alone = np.random.default_rng(0), list[bool](), list[bool]()

    def right(draws: int, images: int) -> np.ndarray:
        of_draw, of_image = 0.05 * random.standard_normal((draws, 1)), 0.2 * random.standard_normal((1, images))
        return random.random((draws, images)) < 0.6 + of_draw + of_image

    truth = right(2000, 2000).mean()
    for _ in range(DRAWS):
        x = torch.from_numpy(right(5, 200)).double()
        low, high = over_both(x)
        held.append(low <= truth <= high)
        low, high = about(x.mean().item(), (x.mean(0).std() / 200**0.5).item())
        alone.append(low <= truth <= high)
    assert 0.93 < np.mean(held) < 0.985  # t with few draws is a little wide
    assert np.mean(alone) < 0.9  # the images alone would promise too much
    assert over_both(torch.ones(3, 4)) == (1, 1)


# The infinitesimal jackknife against leaving out one image after the other


def jackknife(measure: Callable[[Tensor], float | None], images: int) -> float:
    """Return the standard error of a measure of images that are named by their places."""
    without = [measure(torch.tensor([each for each in range(images) if each != left])) for left in range(images)]
    return float(np.std(np.array(without, float)) * (images - 1) ** 0.5)


def errors(values: dict[str, float], found: dict[str, tuple[float, float]]) -> dict[str, float]:
    assert all(sum(found[name]) / 2 == pytest.approx(values[name]) for name in found)
    return {name: (high - low) / 2 / norm.ppf(0.975) for name, (low, high) in found.items()}


@pytest.mark.parametrize("width", [12, 250])  # fewer features than images, and more
def test_spectra_have_the_jackknifes_error(width: int):
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((120, width)))
    x = x * torch.arange(1, width + 1) ** -0.5 + 0.1
    numbers = spectrum(x)
    found = errors(numbers, intervals(numbers, shares(x)))
    assert set(found) == {"nesum", "participation_ratio", "stable_rank", "self_cluster"}
    for name, error in found.items():
        assert error == pytest.approx(jackknife(lambda kept, name=name: spectrum(x[kept])[name], 120), rel=0.1), name
    assert shares(torch.ones(20, 4)) == shares(torch.randn(1, 4)) == {}


class Viewed:
    """Encodings with given features of views."""

    image_size = 8

    def __init__(self, *views: Tensor):
        self.features = views

    def views(self, *_: object) -> list[Features]:
        return [Features(each) for each in self.features]


def test_pairs_and_invariance_have_the_jackknifes_error():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(80, 6, generator=draw) + 0.5
    y = x + 0.5 * torch.randn(80, 6, generator=draw)
    found = Pairs(Pairs.Config())(Viewed(x, y))  # type: ignore[arg-type]
    assert found.numbers == pytest.approx(pairs([x, y]))
    assert found.images == 80
    for name, error in errors(dict(found.numbers), dict(found.intervals)).items():
        assert error == pytest.approx(jackknife(lambda kept, name=name: pairs([x[kept], y[kept]])[name], 80), rel=0.05)
    evaluator = Invariance(Invariance.Config())
    changed = [x + 0.1 * step * torch.randn(80, 6, generator=draw) for step in range(1, 9)]
    found = evaluator(Viewed(x, *changed))  # type: ignore[arg-type]
    known = errors(dict(found.numbers), dict(found.intervals))
    assert set(known) == set(Invariance.metrics)
    for name, one in zip(Invariance.metrics, changed, strict=True):
        assert known[name] == pytest.approx(
            jackknife(lambda kept, one=one: invariance(x[kept], one[kept]), 80), rel=0.1
        ), name
    moved, apart = distances(x, y)
    assert 1 - (moved.mean() / apart.mean()).item() == pytest.approx(invariance(x, y))
    assert Pairs(Pairs.Config())(Viewed(x[:1], y[:1])).intervals == {}  # type: ignore[arg-type]


class Asked:
    """Encodings with given features."""

    seed = 0
    validation = None

    def __init__(self, train: Features, evaluated: Features):
        self.train, self.evaluated = train, evaluated


def test_retrieval_counts_the_images_that_have_an_answer():
    draw = torch.Generator().manual_seed(0)
    train = Features(torch.randn(60, 5, generator=draw), torch.arange(60) % 3)
    asked = Features(torch.randn(40, 5, generator=draw), torch.arange(40) % 4)  # of the fourth class there is none
    found = Retrieval(Retrieval.Config())(Asked(train, asked))  # type: ignore[arg-type]
    answers = retrieval(train, asked)["mean_average_precision"]
    assert found.images == len(answers) == 30
    expected = about(answers.mean().item(), answers.std().item() / 30**0.5)
    assert found.intervals["mean_average_precision"] == pytest.approx(expected)
    assert "precision_at_1" not in found.intervals  # a share of images: Wilson's is computed for all alike


def test_every_number_of_an_evaluator_has_an_interval_or_a_reason():
    for one in declared("evaluator").values():
        for name, metric in one.values["metrics"].items():
            assert (metric.interval is None) == bool(metric.no_interval), f"{one.name}: {name}"
    assert not any(metric.interval or metric.no_interval for metric in LOOP.values())

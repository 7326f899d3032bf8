"""Energies of pairs, against numpy and scikit-learn."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from eagleray.evaluators.pairs import pairs, separability, similarities


def views_of(count: int, width: int, noise: float, views: int = 2, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, width, generator=draw)
    return [images + noise * torch.randn(count, width, generator=draw) for _ in range(views)]


def pair_by_pair(views: list[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Every pair of views, one after the other, in numpy."""
    rows = [(n, row / np.linalg.norm(row)) for view in views for n, row in enumerate(view.double().numpy())]
    found = {True: [], False: []}
    for (one, a), (other, b) in combinations(rows, 2):
        found[one == other].append(float(a @ b))
    return found[True], found[False]


@pytest.mark.parametrize(("noise", "number"), [(0.5, 2), (2.0, 2), (1.0, 3)])
def test_gap_and_separability_are_those_of_all_pairs_one_by_one(noise: float, number: int):
    views = views_of(30, 5, noise, number)
    positive, negative = pair_by_pair(views)
    found = pairs(views)
    assert found["gap"] == pytest.approx(np.mean(positive) - np.mean(negative), abs=1e-9)
    wanted = roc_auc_score([1] * len(positive) + [0] * len(negative), positive + negative)
    assert found["separability"] == pytest.approx(wanted, abs=1e-4)
    for ours, theirs in zip(similarities(views), (positive, negative), strict=True):
        np.testing.assert_allclose(ours.sort().values, np.sort(theirs), atol=1e-9)


def test_compatible_energies_below_all_others_are_a_gap_with_separability_one():
    views = views_of(40, 64, 0.01)
    found = pairs(views)
    assert found["separability"] == 1
    assert found["gap"] == pytest.approx(1, abs=0.1)  # random directions in 64 dimensions are nearly at right angles


def test_views_that_ignore_the_image_and_collapsed_ones_have_none():
    draw = torch.Generator().manual_seed(1)
    ignoring = pairs([torch.randn(300, 16, generator=draw) for _ in range(2)])
    assert ignoring["gap"] == pytest.approx(0, abs=0.05)
    assert ignoring["separability"] == pytest.approx(0.5, abs=0.05)
    point = torch.randn(1, 7, generator=draw).expand(50, 7)
    collapsed = pairs([point + 1e-8 * torch.randn(50, 7, generator=draw), point])  # differ by rounding errors
    assert collapsed["gap"] == pytest.approx(0, abs=1e-6)
    assert collapsed["separability"] == 0.5


def test_equal_cosines_count_half():
    assert separability(torch.tensor([0.3, 0.8]), torch.tensor([0.3, 0.1, 0.9])) == pytest.approx(3.5 / 6)

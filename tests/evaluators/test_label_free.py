"""Measures without labels: against their formulas in numpy, independent routines of SciPy, and known answers."""

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from sklearn.linear_model import LinearRegression

from eagleray.contracts.errors import ConfigError
from eagleray.evaluators.dimension import dimension, tree_length
from eagleray.evaluators.lidar import DELTA, lidar
from eagleray.evaluators.spectrum import FIRST, LAST, spectrum

COUNT, WIDTH = 2048, 256


def gaussian(count: int = COUNT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width))


def falling(power: float) -> np.ndarray:
    return gaussian() * np.arange(1, WIDTH + 1.0) ** (-power / 2)


def of_rank(rank: int) -> np.ndarray:
    return gaussian(width=rank) @ np.linalg.qr(gaussian(WIDTH, rank, 1))[0].T


# spectrum


@pytest.mark.parametrize(
    "x", [gaussian(), gaussian() + 10, falling(1), gaussian(100)], ids=["even", "mean", "1/j", "few"]
)
def test_the_spectrum_is_its_formulas(x: np.ndarray):
    count = len(x)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    eigenvalues = eigenvalues[: min(count - 1, WIDTH)]
    singular = np.linalg.svd(x, compute_uv=False)
    w = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (w @ w.T) ** 2
    even = count * (count - 1) / WIDTH
    place = np.arange(FIRST, min(LAST, len(eigenvalues)) + 1)
    line = LinearRegression().fit(np.log(place)[:, None], np.log(eigenvalues[place - 1]), sample_weight=1 / place)
    assert spectrum(torch.from_numpy(x)) == pytest.approx(
        {
            "nesum": eigenvalues.sum() / eigenvalues[0],
            "participation_ratio": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
            "stable_rank": (singular**2).sum() / singular[0] ** 2,
            "alpha": -line.coef_[0],
            "self_cluster": (cosines.sum() - count - even) / (count**2 - count - even),
        },
        rel=1e-6,
        abs=1e-9,
    )


def test_known_spectra():
    even, shifted, rank16 = (spectrum(torch.from_numpy(x)) for x in (gaussian(), gaussian() + 10, of_rank(16)))
    assert even["nesum"] == pytest.approx(143, rel=0.02)
    assert even["alpha"] == pytest.approx(0.18, abs=0.02)
    assert even["self_cluster"] == pytest.approx(0, abs=1e-3)
    assert shifted["nesum"] == pytest.approx(even["nesum"])  # centred
    assert shifted["stable_rank"] < 1.1  # the mean alone
    assert rank16["participation_ratio"] == pytest.approx(16, rel=0.02)
    assert "alpha" not in rank16  # six eigenvalues from the 11th on
    for power in (1, 2):
        assert spectrum(torch.from_numpy(falling(power)))["alpha"] == pytest.approx(power, abs=0.03)


def test_collapse_has_no_spectrum():
    point = spectrum(torch.ones(50, 8))
    assert point == {
        "nesum": 0,
        "participation_ratio": 0,
        "stable_rank": pytest.approx(1),
        "self_cluster": pytest.approx(1),
    }
    assert spectrum(torch.zeros(50, 8))["stable_rank"] == 0
    assert "self_cluster" not in spectrum(torch.ones(1, 8))


def test_the_mean_of_features_as_large_as_rounding_errors_does_not_add_directions():
    x = torch.from_numpy(of_rank(16)).float() + 1000
    assert spectrum(x)["participation_ratio"] < 17


# LiDAR


def views_of(images: np.ndarray, noise: float, views: int = 8) -> list[torch.Tensor]:
    random = np.random.default_rng(1)
    return [torch.from_numpy(images + noise * random.standard_normal(images.shape)) for _ in range(views)]


def test_lidar_is_its_formula():
    views = views_of(gaussian(300, 24) * np.linspace(0.1, 2, 24), 0.7, views=4)
    x = np.stack([view.numpy() for view in views])
    x -= x.mean((0, 1))
    x /= x.std()
    means = x.mean(0)
    within = np.concatenate(list(x - means))
    inside = within.T @ within / (300 * 3)
    between = np.cov(means.T)
    root = fractional_matrix_power(inside + DELTA * np.eye(24), -0.5)
    values = np.linalg.eigvalsh(root @ between @ root)
    share = values / values.sum()
    found = lidar(views)
    assert found["lidar"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert found["signal"] == pytest.approx((np.trace(between) - np.trace(inside) / 4) / np.trace(inside), rel=1e-6)


def test_lidar_does_not_see_missing_signal_and_the_ratio_does():
    nothing, everything = lidar(views_of(np.zeros((1000, 64)), 1)), lidar(views_of(gaussian(1000, 64), 1e-3))
    assert nothing["lidar"] > 58
    assert everything["lidar"] > 58
    assert nothing["signal"] == pytest.approx(0, abs=0.01)
    assert everything["signal"] > 1e5
    few = np.concatenate([3 * gaussian(1000, 8), np.zeros((1000, 56))], 1)
    assert lidar(views_of(few, 1))["lidar"] == pytest.approx(12.4, abs=0.5)


def test_lidar_does_not_mind_the_scale_and_has_an_answer_for_collapse():
    views = views_of(gaussian(200, 16), 0.5)
    assert lidar([1000 * view for view in views]) == pytest.approx(lidar(views))
    assert lidar([torch.ones(20, 4)] * 2) == {"lidar": 0, "signal": 0}
    same = torch.from_numpy(gaussian(40, 4))
    assert set(lidar([same, same])) == {"lidar"}  # no view differs: the ratio would be infinite
    with pytest.raises(ConfigError, match="2 or more"):
        lidar([same])


# dimension


@pytest.mark.parametrize(("width", "idest"), [(2, 1.98), (5, 4.59), (10, 8.3), (20, 15.2)])
def test_the_dimension_of_a_cube(width: int, idest: float):
    found = dimension(torch.from_numpy(np.random.default_rng(0).random((COUNT, width))))
    assert found["idest"] == pytest.approx(idest, rel=0.06)  # both fall short of the truth in many dimensions
    assert found["twonn"] == pytest.approx(idest, rel=0.1)


def test_two_nearest_neighbours_are_the_formula():
    x = gaussian(500, 6)
    distances = np.sort(cdist(x, x), 1)
    ratio = np.sort(distances[:, 2] / distances[:, 1])[:450]
    empirical = np.arange(1, 451) / 500
    line = LinearRegression(fit_intercept=False).fit(np.log(ratio)[:, None], -np.log(1 - empirical))
    assert dimension(torch.from_numpy(x))["twonn"] == pytest.approx(line.coef_[0], rel=1e-9)


def test_the_tree_is_that_of_scipy():
    x = gaussian(300, 5)
    distances = cdist(x, x)
    assert tree_length(torch.from_numpy(distances)) == pytest.approx(minimum_spanning_tree(distances).sum())


def test_clusters_that_lie_apart_are_learnt_and_the_order_and_copies_of_images_do_not_matter():
    centres = 100 * gaussian(16, 8)
    x = torch.from_numpy(np.repeat(centres, 16, 0) + gaussian(256, 8, 1))
    found = dimension(x)
    assert found["learnable"] == 1
    mixed = torch.cat([x, x[:50]])[torch.randperm(306, generator=torch.Generator().manual_seed(0))]
    assert dimension(mixed) == found
    assert dimension(x[:31]) == {}
    assert dimension(torch.ones(100, 4)) == {}


def test_points_at_even_distances_have_an_answer():
    grid = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    assert "twonn" not in dimension(grid)  # every ratio is 1
    assert 2 < dimension(grid)["idest"] < 4  # of a hundred points it is rough

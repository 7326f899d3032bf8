"""Intrinsic dimension of the features, and how well their clusters can be learnt; no labels are needed.

The two estimates of dimension disagree, and both depend on the number of images: compare them at equal numbers.
"""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import SAMPLES, stacked
from eagleray.contracts.metric import CHOSEN, GROWS, Metric, When
from eagleray.contracts.seeds import generator

SIZES = 6  # numbers of images that IdEst measures trees on, from an eighth of all on
DRAWS = 4  # subsets of each number
KEPT = 0.9  # of the ratios of distances, the lowest: the others are noise


class Dimension(Evaluator):
    """Intrinsic dimension (TwoNN, IdEst) and learnability of clusters of the features."""

    when: ClassVar[When] = "never"  # it costs seconds

    metrics: ClassVar[dict[str, Metric]] = {
        "twonn": Metric(
            "intrinsic dimension by the distances to the two nearest images (TwoNN)",
            None,
            no_goal="no end of it is known to be better; in CLID, beside learnable, a high one is",
            no_interval=GROWS,
        ),
        "idest": Metric(
            "intrinsic dimension by the growth of the minimum spanning tree (IdEst)",
            "lower",
            no_goal="collapse has the lowest; read it among runs that another metric finds healthy",
            no_interval=GROWS,
        ),
        "learnable": Metric(
            "share of images whose k-means cluster the nearest other image tells (cluster learnability)",
            "higher",
            no_goal="collapse into few points is learnt best; it is a part of CLID, beside twonn",
            no_interval=CHOSEN,
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        features = encodings.evaluated.features
        return Found(dimension(features, encodings.seed), images=min(len(features), SAMPLES))


def dimension(features: Tensor, seed: int = 0) -> dict[str, float]:
    """Compute intrinsic dimensions and cluster learnability of features [N, D].

    Of at most 2,048 images, evenly spaced; equal ones count once.

        twonn      slope through 0 of -log(1 - F) on log(r_2 / r_1), the lowest 90 %: r_1 and r_2 are the distances to
                   the two nearest images, F is their empirical distribution (1)
        idest      1 / (1 - m), m the slope of log L on log n: L is the length of the Euclidean minimum spanning tree of
                   n random images, from an eighth of them to all (2)
        learnable  sqrt(N) clusters by k-means; for a random half of the images the cluster of the nearest image of the
                   other half is guessed: the share that is right (3)

    What fewer than 32 different images, or a slope without meaning, cannot tell is left out.

    Args:
        features: of the images.
        seed: of subsets, halves and clusters.

    Raises:
        ConfigError: no images, or NaN or infinite features.

    Source: (1) Facco et al. 2017, https://arxiv.org/abs/1803.06992; (2) IdEst, https://arxiv.org/abs/2606.03338;
    (3) CLID, Lu et al. 2022, https://arxiv.org/abs/2206.01251
    """
    (x,) = stacked([features])
    x = x.unique(dim=0)  # also sorts them, so the order of the images does not matter
    if len(x) < 32:
        return {}
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    draw = generator(seed, purpose="dimension")
    found = {
        "twonn": _two_nn(distances),
        "idest": _tree_dimension(distances, draw),
        "learnable": _learnable(x, distances, seed, draw),
    }
    return {name: value for name, value in found.items() if value is not None}


def _two_nn(distances: Tensor) -> float | None:
    nearest = distances.topk(3, largest=False).values  # the image itself, and two others
    ratios = (nearest[:, 2] / nearest[:, 1]).log().sort().values
    count = len(ratios)
    kept = int(KEPT * count)
    x = ratios[:kept]
    y = -torch.log1p(-torch.arange(1, kept + 1, dtype=x.dtype, device=x.device) / count)
    return (x @ y / (x @ x)).item() if x @ x > 0 else None


def _tree_dimension(distances: Tensor, draw: torch.Generator) -> float | None:
    count = len(distances)
    sizes = [round(count / 8 * 8 ** (step / (SIZES - 1))) for step in range(SIZES)]
    subsets = [(size, torch.randperm(count, generator=draw)[:size]) for size in sizes for _ in range(DRAWS)]
    lengths = [tree_length(distances[rows][:, rows]) for _, rows in subsets]
    x, y = torch.tensor([[size for size, _ in subsets], lengths], dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y / (x @ x)).item()
    return 1 / (1 - slope) if slope < 1 else None


def tree_length(distances: Tensor) -> float:
    """Return the length of the minimum spanning tree of points with distances [N, N].

    By Prim's algorithm. SciPy's takes distances of 0 for edges that are missing.
    """
    table = distances.cpu().numpy()
    nearest, total = table[0].copy(), 0.0  # of each point outside the tree: its distance to the tree
    nearest[0] = np.inf
    for _ in range(len(table) - 1):
        new = nearest.argmin()
        total += nearest[new]
        np.minimum(nearest, table[new], out=nearest, where=nearest < np.inf)
        nearest[new] = np.inf
    return float(total)


def _learnable(x: Tensor, distances: Tensor, seed: int, draw: torch.Generator) -> float:
    from sklearn.cluster import KMeans

    means = KMeans(round(math.sqrt(len(x))), random_state=seed)  # started once, by k-means++
    clusters = torch.from_numpy(means.fit_predict(x.cpu()))
    order = torch.randperm(len(x), generator=draw)
    asked, known = order[: len(x) // 2], order[len(x) // 2 :]
    guessed = clusters[known[distances[asked][:, known].argmin(1).cpu()]]
    return (guessed == clusters[asked]).double().mean().item()

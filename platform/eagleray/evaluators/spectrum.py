"""Measures of how many directions the features use, and how evenly; they need no labels.

All are functions of the spectrum of the features, and none sees what the directions mean: noise that ignores the images
has the best spectrum of all. They compare runs of one method and one encoder; floors have no comparable values.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import SAMPLES, intervals, spectra, squares, stacked
from eagleray.contracts.metric import Metric

BLIND = "it sees how evenly features vary, not what they say of the images; compare runs of one method and encoder"
STEPS = 30  # of the iteration that finds the largest direction, for intervals
FIRST, LAST = 11, 100  # eigenvalues that the exponent is fitted on; another range may turn its sign


class Spectrum(Evaluator):
    """Evenness of the spectrum of the features."""

    metrics: ClassVar[dict[str, Metric]] = {
        "nesum": Metric(
            "sum of the eigenvalues of the features' covariance by the largest (NESum): at most their width",
            "higher",
            caution=BLIND,
            of_encoder=True,
            interval="own",
        ),
        "participation_ratio": Metric(
            "participation ratio of the eigenvalues of the features' covariance: at most their width, and too low by "
            "its square by the number of images",
            "higher",
            caution=BLIND,
            of_encoder=True,
            interval="own",
        ),
        "stable_rank": Metric(
            "stable rank of the features, which are not centred",
            "higher",
            no_goal="a mean that all features share lowers it alone",
            of_encoder=True,
            interval="own",
        ),
        "alpha": Metric(
            "exponent with which the 11th to 100th eigenvalue of the covariance fall (alpha-ReQ); near 1 is said to be "
            "best",
            None,
            no_goal="neither end of it is better",
            of_encoder=True,
            no_interval="ninety directions have a part in it, and nothing is chosen by it",
        ),
        "self_cluster": Metric(
            "how far images lie in clusters or in a cone: 0 as points drawn evenly from a sphere, 1 all at one point",
            "lower",
            caution=BLIND,
            of_encoder=True,
            interval="own",
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        features = encodings.evaluated.features
        numbers = spectrum(features, encodings.evaluated.spectra)
        own = {name: values for name, values in shares(features).items() if numbers.get(name)}
        return Found(numbers, images=min(len(features), SAMPLES), intervals=intervals(numbers, own))


def spectrum(features: Tensor, singular: tuple[Tensor, Tensor] | None = None) -> dict[str, float]:
    """Compute measures of the spectrum of features [N, D].

    Of at most 2,048 of them, evenly spaced. With l the eigenvalues of the covariance, descending, s the singular values
    of the features themselves, and w the features of length 1:

        nesum          sum(l) / l_1 (1)
        participation_ratio  sum(l)² / sum(l²)
        stable_rank    sum(s²) / s_1² (2)
        alpha          -slope of log l_j on log j, j = 11 to 100, weighted by 1/j (3); left out where fewer than
                       ten of them are above rounding errors
        self_cluster   (Q - N - e) / (N² - N - e) with Q = ‖w wᵀ‖² and e = N (N - 1) / D, what even points have (2)

    The first three are 0 where nothing varies; self_cluster needs two images and two features.

    Args:
        features: those of the images.
        singular: their `spectra`, where they are known.

    Raises:
        ConfigError: no images, or NaN or infinite features.

    Source: (1) He, Ozay 2022, Exploring the Gap between Collapsed and Whitened Features in Self-Supervised Learning;
    (2) Tsitsulin et al. 2023, https://arxiv.org/abs/2305.16562; (3) Agrawal et al. 2022, alpha-ReQ.
    """
    (x,) = stacked([features])
    count, width = x.shape
    raw, centred = (values.square() for values in singular or spectra(x))
    metrics = {
        "nesum": nesum(centred),
        "participation_ratio": _ratio(centred.sum().square(), centred.square().sum()),
        "stable_rank": _ratio(raw.sum(), raw.max()),
    }
    if (alpha := _exponent(centred[centred > 0])) is not None:
        metrics["alpha"] = alpha
    if count > 1 and width > 1:
        even = count * (count - 1) / width
        w = F.normalize(x, dim=1)
        gram = w.T @ w if width < count else w @ w.T
        metrics["self_cluster"] = ((gram.square().sum() - count - even) / (count**2 - count - even)).item()
    return metrics


def nesum(eigenvalues: Tensor) -> float:
    """Return the sum of eigenvalues divided by the largest, 0 if all are 0 (1 in `spectrum`)."""
    return _ratio(eigenvalues.sum(), eigenvalues.max())


def shares(features: Tensor) -> dict[str, Tensor]:
    """Return what each image adds to measures of the spectrum, float64 [N], up to a constant.

    By their derivatives; that of the largest eigenvalue is the square of an image's part along its direction. None of
    features that do not vary.
    """
    (x,) = stacked([features])
    y = x - x.mean(0)
    count, width = x.shape
    total, raw = squares(y), squares(x)
    largest, first = _along(y), _along(x)
    if not (largest.mean() > 0 and first.mean() > 0 and count > 1 and width > 1):
        return {}
    fourth, close = _products(y) / count, _products(F.normalize(x))
    trace, square = total.mean(), fourth.mean()
    return {
        "nesum": (total - trace / largest.mean() * largest) / largest.mean(),
        "participation_ratio": 2 * trace / square * (total - trace / square * fourth),
        "stable_rank": (raw - raw.mean() / first.mean() * first) / first.mean(),
        "self_cluster": 2 * (close - 1) / (count - 1) / (1 - 1 / width),
    }


def _products(x: Tensor) -> Tensor:
    """Return the sum of the squared products of each row with all rows, [N]."""
    return squares(x @ x.T) if len(x) < x.shape[1] else (x @ (x.T @ x) * x).sum(1)


def _along(x: Tensor) -> Tensor:
    """Return the square of each row along the direction in which the rows are longest, [N], by power iteration."""
    direction = x[squares(x).argmax()]
    for _ in range(STEPS):
        direction = F.normalize(x.T @ (x @ direction), dim=0)
    return (x @ direction).square()


def _ratio(above: Tensor, below: Tensor) -> float:
    return (above / below).item() if below > 0 else 0.0


def _exponent(eigenvalues: Tensor) -> float | None:
    """Return how steeply eigenvalues fall, by least squares in logarithms."""
    values = eigenvalues.sort(descending=True).values[FIRST - 1 : LAST]
    if len(values) < 10:
        return None
    place = torch.arange(FIRST, FIRST + len(values), dtype=values.dtype, device=values.device)
    weight, x, y = 1 / place, place.log(), values.log()
    x, y = (each - (weight * each).sum() / weight.sum() for each in (x, y))
    return -((weight * x * y).sum() / (weight * x * x).sum()).item()

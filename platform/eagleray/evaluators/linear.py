"""The linear probe: logistic regression on frozen features.

Multinomial, fitted by L-BFGS in whitened coordinates:

    minimise over W and b:   mean of -log softmax(W x + b)[label]  +  penalty / 2 · ‖W‖²

where x are the features, each dimension standardised. The curvature of this is at most that of least squares
on the same features (Böhning 1992), so whitening makes it nearly round, and some twenty iterations replace a
hundred epochs of SGD. Whitening changes the coordinates of the search only: a penalty on the whitened weights
themselves would favour the directions of least variance (27 points of accuracy lost at 500 images of 512
features). The features are never copied: standardising and whitening are folded into the weights.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.evaluator import Encodings, Evaluator
from eagleray.contracts.features import Features, accuracy, evenly
from eagleray.contracts.metric import Metric, When
from eagleray.contracts.seeds import unhashed_generator

PENALTIES = [10 ** (1 - step / 2) for step in range(13)]  # 10 to 1e-5, for at most SAMPLE images
SAMPLE = 10_000  # images that the penalty and the features' statistics are taken from
WIDEST = 8192  # features: a square matrix of them is factored
BLOCK = 2**24  # logits formed at a time

Solution = tuple[Tensor, Tensor]  # weights [C, D] and bias [C], of standardised features


class Linear(Evaluator):
    """A linear classifier that is trained on frozen features (the linear probe)."""

    metrics: ClassVar[dict[str, Metric]] = {
        "linear": Metric(
            "share of the images that a linear classifier of the features classifies right",
            "higher",
            needs=frozenset({"labels"}),
            interval="wilson",
            headline=True,
        )
    }
    when: ClassVar[When] = "end"

    def __call__(self, encodings: Encodings) -> dict[str, float]:
        return linear(encodings.train, encodings.evaluated, validation=encodings.validation, seed=encodings.seed)


def linear(
    train: Features,
    test: Features,
    *,
    validation: Features | None = None,
    seed: int = 0,
    iterations: int = 20,
) -> dict[str, float]:
    """Train a linear classifier and compute its accuracy.

    The penalty is the one whose fit gives held-out labels the highest likelihood (accuracy would tie on few
    images). The held-out images are `validation`, or else a fifth of the training images, the same share of every
    class. The penalty is chosen on at most 10,000 images and kept as a penalty on the SUM over images, which does
    not depend on their number. Then all training images are fitted. The result is the plain accuracy, not the
    balanced one: larger classes count more.

    Args:
        validation: images that choose the penalty; they are never fitted.
        seed: of the choice of held-out images.
        iterations: of L-BFGS in the last fit.

    Returns:
        {"linear": share of the test images that are classified right}

    Raises:
        ConfigError: no labels, no test images, fewer than two training images, more than 8,192 features.
    """
    truth = test.targets()
    probe = train_probe(train, validation, seed=seed, iterations=iterations)
    return {"linear": accuracy(probe.predict(test.features), truth)}


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features."""

    weights: Tensor  # [C, D]
    bias: Tensor  # [C]
    classes: Tensor  # [C] the label of each row, ascending

    def logits(self, features: Tensor) -> Tensor:
        """Compute logits: [N, D] -> [N, C]"""
        return torch.addmm(self.bias, features, self.weights.T)

    def predict(self, features: Tensor) -> Tensor:
        """Predict labels: [N, D] -> [N]"""
        return self.classes[self.logits(features).argmax(1)]


@dataclass(frozen=True)
class Standard:
    """Statistics that standardise features.

    A dimension that does not vary gets weight 0.
    """

    mean: Tensor  # [D]
    deviation: Tensor  # [D], infinite where the dimension is constant
    correlation: Tensor  # [D, D]

    @classmethod
    def of(cls, features: Tensor) -> "Standard":
        mean = features.mean(0)
        x = features - mean
        deviation = x.square().mean(0).sqrt()
        deviation[deviation <= 1e-5 * mean.abs()] = torch.inf  # constant, up to the rounding of float32
        x /= deviation
        return cls(mean, deviation, x.T @ x / len(x))

    def fold(self, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Convert weights and bias to act on unstandardised features."""
        weights = weights / self.deviation
        return weights, bias - weights @ self.mean


def train_probe(train: Features, validation: Features | None = None, *, seed: int = 0, iterations: int = 20) -> Probe:
    """Choose the penalty, then fit all of `train`.

    Arguments and errors are those of `linear`.
    """
    labels, width = train.targets(), train.features.shape[1]
    if len(train) < 2 or width > WIDEST:
        raise ConfigError(
            f"the linear probe needs at least two training images and at most {WIDEST} features, not {len(train)} "
            f"images of {width} features: add images, or use a narrower representation"
        )
    classes, targets = labels.unique(return_inverse=True)
    sample = _sample(targets, seed)
    standard = Standard.of(train.features[sample])
    if validation is None:
        is_held = torch.arange(len(sample), device=sample.device) % 5 == 1
        validation, sample = train.at(sample[is_held]), sample[~is_held]
    elif not torch.isin(validation.targets(), classes).any():
        warnings.warn(
            "no validation image of the linear probe is of a class that the training images have: its strongest "
            f"penalty is taken, {PENALTIES[0]:g}",
            stacklevel=2,
        )
    penalty, solution = _choose_penalty(train.features[sample], targets[sample], standard, classes, validation)
    penalty *= len(sample) / len(train)
    solution = fit(train.features, targets, standard, penalty, solution, iterations)
    return Probe(*standard.fold(*solution), classes)


def _choose_penalty(
    features: Tensor, targets: Tensor, standard: Standard, classes: Tensor, held_out: Features
) -> tuple[float, Solution]:
    """Return the best penalty and its solution.

    Under it the held-out labels are most likely.
    """
    solution = (features.new_zeros(len(classes), features.shape[1]), features.new_zeros(len(classes)))
    best, lowest = (PENALTIES[0], solution), torch.inf
    for penalty in PENALTIES:  # from strong to weak, each starting where the one before ended
        solution = fit(features, targets, standard, penalty, solution, iterations=10, tolerance=1e-3)
        surprise = _surprise(Probe(*standard.fold(*solution), classes), held_out)
        if not surprise < lowest:
            break  # weaker ones only overfit more
        best, lowest = (penalty, solution), surprise
    return best


def fit(
    features: Tensor,
    targets: Tensor,
    standard: Standard,
    penalty: float,
    start: Solution,
    iterations: int,
    tolerance: float = 1e-5,
) -> Solution:
    """Minimise the objective at the top of this file.

    Args:
        features: [N, D], not standardised.
        targets: [N], from 0 to C - 1.
        start: where the search begins.
        tolerance: change of the objective at which to stop.

    Returns:
        Weights and bias, of standardised features.
    """
    # The curvature is about (correlation + C · penalty) / C. An inexact estimate only costs speed; the extra term
    # protects the factorisation from rounding errors where features depend on each other.
    ridge = len(start[1]) * penalty + 1e-5 * len(standard.mean)
    factor = torch.linalg.cholesky(standard.correlation + ridge * torch.eye(len(standard.mean)).to(features))
    whitened = (start[0] @ factor).requires_grad_()
    bias = start[1].clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [whitened, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=0,
        tolerance_change=tolerance,
        line_search_fn="strong_wolfe",
    )

    def weights() -> Tensor:
        return torch.linalg.solve_triangular(factor, whitened, upper=False, left=False)

    def objective() -> Tensor:
        optimizer.zero_grad()
        folded = standard.fold(weights(), bias)
        loss, *gradients = _cross_entropy(features, targets, *(part.detach() for part in folded))
        shrinkage = penalty / 2 * weights().square().sum()
        torch.autograd.backward([*folded, shrinkage], [*gradients, None])
        return loss + shrinkage.detach()

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[arg-type]
    return weights().detach(), bias.detach()


def _cross_entropy(features: Tensor, targets: Tensor, weights: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Compute the mean cross-entropy and its gradients.

    For weights and bias, in blocks of images.
    """
    loss = features.new_zeros(())
    weights_gradient, bias_gradient = features.new_zeros(weights.shape), torch.zeros_like(bias)
    rows = max(1, BLOCK // len(weights))
    for x, target in zip(features.split(rows), targets.split(rows), strict=True):
        logits = torch.addmm(bias[:, None], weights, x.T)  # [C, n]: a softmax over few classes is fast only this way
        normaliser = logits.logsumexp(0)
        loss += (normaliser - logits.gather(0, target[None])).sum()
        # the gradient for the logits is softmax - one_hot(target)
        error = logits.sub_(normaliser).exp_()
        error.scatter_add_(0, target[None], torch.full_like(normaliser, -1)[None])
        weights_gradient += error @ x
        bias_gradient += error.sum(1)
    return loss / len(features), weights_gradient / len(features), bias_gradient / len(features)


def _sample(targets: Tensor, seed: int) -> Tensor:
    """Return at most SAMPLE indices, sorted by class.

    Every evenly spaced part has the same share of each class.
    """
    order = torch.randperm(len(targets), generator=unhashed_generator(seed)).to(targets.device)
    return evenly(order[targets[order].argsort(stable=True)], SAMPLE)


def _surprise(probe: Probe, held_out: Features) -> float:
    """Compute the held-out labels' mean negative log-likelihood.

    Only labels that the probe knows count.
    """
    known = torch.isin(held_out.targets(), probe.classes)
    logits, labels = probe.logits(held_out.features[known]), held_out.targets()[known]
    return F.cross_entropy(logits, torch.searchsorted(probe.classes, labels)).item()

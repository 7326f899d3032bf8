"""Features of one split, computed once for all evaluators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.interval import Interval, about

NOISE = 1e-6  # relative to the largest singular value; smaller ones are float32 rounding errors
SAMPLES = 2048  # rows that `stacked` keeps: the cost of spectra and of pairs grows faster than their number


@dataclass(frozen=True)
class Features:
    """Encoded images.

    Raises:
        ConfigError: shapes that do not match, or features that are NaN or infinite.
    """

    features: Tensor  # [N, D] float32
    labels: Tensor | None = None  # [N] int64, on the features' device; None: unknown

    def __post_init__(self) -> None:
        shapes = [list(x.shape) for x in (self.features, self.labels) if x is not None]
        if self.features.dim() != 2 or shapes[1:] not in ([], [shapes[0][:1]]):
            raise ConfigError(f"features and labels must have the shapes [N, D] and [N], not {shapes}")
        broken = int((~self.features.isfinite().all(1)).sum())
        if broken:
            raise ConfigError(
                f"the encoder gives NaN or infinite features for {broken} of {len(self)} images: its training "
                "has diverged, so lower the learning rate or evaluate an earlier checkpoint"
            )

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def spectra(self) -> tuple[Tensor, Tensor]:
        """Singular values as `spectra` gives them, computed once for all evaluators: they are most of the cost."""
        return spectra(stacked([self.features])[0])

    def at(self, index: Tensor) -> "Features":
        """Select images by [n] indices or an [N] mask."""
        return Features(self.features[index], None if self.labels is None else self.labels[index])

    def targets(self) -> Tensor:
        """Return the labels, [N].

        Raises:
            ConfigError: there are no images or no labels.
        """
        if self.labels is None:
            raise ConfigError("these images have no labels: kNN and the linear probe cannot evaluate them")
        if len(self) == 0:
            raise ConfigError("this split has no images: kNN and the linear probe need some")
        return self.labels


def evenly(x: Tensor, most: int) -> Tensor:
    """Return at most `most` entries, evenly spaced.

    They are taken from the first dimension, the same ones each time.
    """
    if len(x) <= most:
        return x
    return x[torch.arange(most, device=x.device) * len(x) // most]


def intervals(values: Mapping[str, float], shares: Mapping[str, Tensor]) -> dict[str, Interval]:
    """Return intervals of smooth functions of independent images, by the infinitesimal jackknife.

    Args:
        values: the functions of all images, by name.
        shares: what each image adds, [N]: of a mean its own value. A constant may be added to all.

    Returns:
        The intervals of those with at least two images.
    """
    errors = {name: (each.std() / len(each) ** 0.5).item() for name, each in shares.items() if len(each) > 1}
    return {name: about(values[name], error) for name, error in errors.items()}


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of right predictions: [N] -> 0..1."""
    return (predicted == labels).double().mean().item()


def stacked(views: Sequence[Tensor], least: int = 1) -> Tensor:
    """Stack views' embeddings, each [N, D], into [V, N, D].

    At most 2,048 images are kept, evenly spaced. The result is float64: float32 rounding errors would look like
    directions of the embeddings.

    Raises:
        ConfigError: fewer than `least` views, no images, different shapes, NaN or infinite values.
    """
    shapes = [list(view.shape) for view in views]
    if len(shapes) < least or shapes != [shapes[0]] * len(shapes) or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise ConfigError(f"embeddings must be {least} or more of one shape [N, D] with N and D above 0, not {shapes}")
    x = torch.stack([evenly(view.detach(), SAMPLES).double() for view in views])
    if not x.isfinite().all():
        raise ConfigError(
            "the embeddings contain NaN or infinite values: the training has diverged, lower its learning rate"
        )
    return x


def squares(x: Tensor) -> Tensor:
    """Return squared lengths: [..., D] -> [...]"""
    return x.square().sum(-1)


def spectrum(x: Tensor, largest: Tensor | None = None) -> Tensor:
    """Compute singular values of float64 [N, D]; those of rounding errors are 0.

    From the smaller Gram matrix: several times faster than an SVD, and exact enough in float64.

    Args:
        x: the matrix.
        largest: that rounding errors are compared with; by default the largest of its own.
    """
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return values.where(values > NOISE * (values.max() if largest is None else largest), 0)


def spectra(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the singular values of float64 [N, D] as it is, and less its mean; those of rounding errors are 0."""
    whole = spectrum(x)
    return whole, spectrum(x - x.mean(0), whole.max())

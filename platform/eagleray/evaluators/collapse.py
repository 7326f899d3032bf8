"""Has a representation collapsed? Metrics of embeddings that need no label.

Complete collapse (all images alike) shows in `std`, dimensional collapse (few directions in use) only in `rank`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.features import evenly

SAMPLES = 2048  # at most so many images are measured, evenly spaced: the cost grows faster than their number
NOISE = 1e-6  # relative to the largest singular value: below it lies the rounding of float32


def collapse(views: Tensor | Sequence[Tensor]) -> dict[str, float]:
    """Collapse metrics of one [N, D] embedding, or of one for each view of the same N images (at most 2,048 of them).

    With x the embeddings of the first view, z = x / ‖x‖, and s the singular values of the matrix x, p = s / sum(s):

        std         mean over dimensions of the standard deviation of z, times sqrt(D): 1 isotropic, 0 collapsed (1)
        rank        effective rank exp(-sum p log p) of x less its mean: 1 to D, and 0 when nothing varies (2)
        rankme      the same of x itself: comparable only at equal N and D (3)
        dead        share of dimensions of x that do not vary
        uniformity  log mean over pairs of images of exp(-2 ‖z_i - z_j‖²): 0 collapsed, lower is more uniform (4)
        positive    mean cosine of two views of one image
        negative    mean cosine of views of two images
        alignment   mean ‖z - z'‖² of two views of one image (4)

    `positive` and `alignment` are there from two views on, `negative` and `uniformity` from two images on.

    Raises:
        ConfigError: no images, NaN or infinite embeddings, or views of different shapes.

    Source: (1) Chen, He 2020, https://arxiv.org/abs/2011.10566; (2) Roy, Vetterli 2007, The Effective Rank;
    (3) Garrido et al. 2022, https://arxiv.org/abs/2210.02885; (4) Wang, Isola 2020, https://arxiv.org/abs/2005.10242
    """
    x = _stacked(views)  # [V, N, D]
    return _of_one_view(x[0]) | _of_pairs(F.normalize(x, dim=2))


def _of_one_view(x: Tensor) -> dict[str, float]:
    count, width = x.shape
    z = F.normalize(x, dim=1)
    spectrum = _singular_values(x)
    noise = NOISE * spectrum.max()
    deviations = x.std(0, correction=0)
    metrics = {
        "std": z.std(0, correction=0).mean().item() * math.sqrt(width),
        "rank": _perplexity(_singular_values(x - x.mean(0)), noise),
        "rankme": _perplexity(spectrum, noise),
        "dead": (deviations <= 10 * NOISE * x.square().mean().sqrt()).double().mean().item(),
    }
    if count > 1:
        potential = (2 * (2 * z @ z.T - _squares(z)[:, None] - _squares(z))).exp()  # exp(-2 ‖z_i - z_j‖²)
        pairs = (potential.sum() - potential.diagonal().sum()) / (count * (count - 1))
        metrics["uniformity"] = pairs.log().item()
    return metrics


def _of_pairs(z: Tensor) -> dict[str, float]:
    """Cosines over ALL pairs, without forming them: a sum of products is a product of sums. z is [V, N, D]."""
    views, count, _ = z.shape
    each = _squares(z).sum()  # each vector with itself
    same_image = _squares(z.sum(0)).sum()  # all pairs of views of one image
    metrics = {}
    if views > 1:
        positive = (same_image - each) / (count * views * (views - 1))
        metrics["positive"] = positive.item()
        metrics["alignment"] = (2 * each / (views * count) - 2 * positive).clamp_min(0).item()
    if count > 1:
        everything = _squares(z.sum((0, 1)))
        metrics["negative"] = ((everything - same_image) / (views**2 * count * (count - 1))).item()
    return metrics


def _stacked(views: Tensor | Sequence[Tensor]) -> Tensor:
    """[V, N, D] in float64, where the arithmetic adds nothing that looks like a direction."""
    views = [views] if isinstance(views, Tensor) else list(views)
    shapes = [list(view.shape) for view in views]
    if not shapes or shapes != [shapes[0]] * len(shapes) or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise ConfigError(f"collapse metrics need embeddings of one shape [N, D] with N and D above 0, not {shapes}")
    x = torch.stack([evenly(view.detach(), SAMPLES).double() for view in views])
    if not x.isfinite().all():
        raise ConfigError(
            "the embeddings hold NaN or infinite values: the training has diverged, lower its learning rate"
        )
    return x


def _singular_values(x: Tensor) -> Tensor:
    """Through the smaller Gram matrix: several times faster than an SVD, and exact enough in float64."""
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()


def _perplexity(values: Tensor, noise: Tensor) -> float:
    """exp of the entropy of values above the noise; 0 where there are none."""
    values = values[values > noise]
    share = values / values.sum()
    return torch.special.entr(share).sum().exp().item() if len(values) else 0.0


def _squares(x: Tensor) -> Tensor:
    return x.square().sum(-1)

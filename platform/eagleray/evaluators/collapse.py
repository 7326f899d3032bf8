"""Metrics of collapse, which need no labels.

Complete collapse (all images have one embedding) shows in `std`; dimensional collapse (few directions are used) shows
only in `rank`.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import NOISE, SAMPLES, spectra, squares, stacked
from eagleray.contracts.metric import GROWS, MAGNITUDE, Metric

GATE = 0.5  # of the untrained network's effective rank: with less, training has done harm (docs/label-free.md)
RANK = "it tells collapsed runs from healthy ones; among healthy ones it hardly follows accuracy"


class Collapse(Evaluator):
    """Spread and rank of the features, which show complete and dimensional collapse."""

    metrics: ClassVar[dict[str, Metric]] = {
        "std": Metric(
            "spread of the normalised features: 1 isotropic, 0 collapsed to a point",
            "higher",
            no_goal="it shows collapse, and says nothing of healthy runs",
            no_interval=MAGNITUDE,
        ),
        "rank": Metric(
            "effective rank of the centred features; at most their width, 0 collapsed to a point",
            "higher",
            caution=RANK,
            no_interval=GROWS,
            of_encoder=True,
        ),
        "rankme": Metric(
            "effective rank of the features as they are (RankMe); comparable at equal N and D",
            "higher",
            caution=RANK,
            no_interval=GROWS,
            of_encoder=True,
        ),
        "rank_share": Metric(
            "rank as a share of the untrained network's; below 0.5 training has lost half of the directions",
            "higher",
            no_goal="it shows collapse; of healthy runs it says what rank says",
            no_interval=GROWS,
            of_encoder=True,
        ),
        "dead": Metric(
            "share of the features that do not vary",
            "lower",
            no_goal="it shows collapse, and is 0 for healthy runs",
            no_interval="a feature varies or not, whichever images are seen",
        ),
        "uniformity": Metric(
            "log mean potential of pairs of images on the sphere: 0 collapsed",
            "lower",
            no_goal="features that ignore the images are the most uniform",
            no_interval=MAGNITUDE,
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        one = encodings.evaluated
        share = {"rank_share": rank_share(encodings)}
        return Found(collapse(one.features, one.spectra) | share, images=min(len(one), SAMPLES))


def rank_share(encodings: Encodings) -> float:
    """Return the effective rank of the features as a share of what it is before any training.

    1.0 if the untrained network tells no images apart.
    """
    now, before = (_perplexity(one.spectra[1]) for one in (encodings.evaluated, encodings.untrained))
    return now / before if before else 1.0


def collapse(embeddings: Tensor, singular: tuple[Tensor, Tensor] | None = None) -> dict[str, float]:
    """Compute collapse metrics of [N, D] embeddings.

    Of at most 2,048 of them, evenly spaced. With x the embeddings, z = x / ‖x‖, and s the singular values of the matrix
    x, p = s / sum(s):

        std         mean over dimensions of the standard deviation of z, times sqrt(D): 1 isotropic, 0 collapsed (1)
        rank        effective rank exp(-sum p log p) of x less its mean: 1 to D, and 0 when nothing varies (2)
        rankme      the same of x itself: comparable only at equal N and D (3)
        dead        share of dimensions of x that do not vary
        uniformity  log mean over pairs of images of exp(-2 ‖z_i - z_j‖²): 0 collapsed, lower is more uniform (4);
                    needs at least two images

    Args:
        embeddings: x.
        singular: the `spectra` of x, where they are known.

    Raises:
        ConfigError: no images, or NaN or infinite embeddings.

    Source: (1) Chen, He 2020, https://arxiv.org/abs/2011.10566; (2) Roy, Vetterli 2007, The Effective Rank;
    (3) Garrido et al. 2022, https://arxiv.org/abs/2210.02885; (4) Wang, Isola 2020, https://arxiv.org/abs/2005.10242
    """
    (x,) = stacked([embeddings])
    count, width = x.shape
    z = F.normalize(x, dim=1)
    whole, centred = singular or spectra(x)
    deviations = x.std(0, correction=0)
    metrics = {
        "std": z.std(0, correction=0).mean().item() * math.sqrt(width),
        "rank": _perplexity(centred),
        "rankme": _perplexity(whole),
        "dead": (deviations <= 10 * NOISE * x.square().mean().sqrt()).double().mean().item(),
    }
    if count > 1:
        potential = (2 * (2 * z @ z.T - squares(z)[:, None] - squares(z))).exp()  # exp(-2 ‖z_i - z_j‖²)
        pairs = (potential.sum() - potential.diagonal().sum()) / (count * (count - 1))
        metrics["uniformity"] = pairs.log().item()
    return metrics


def _perplexity(values: Tensor) -> float:
    """Return exp of the entropy of the values; 0 if all are 0."""
    share = values / values.sum()
    return torch.special.entr(share).sum().exp().item() if values.any() else 0.0

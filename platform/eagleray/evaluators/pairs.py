"""Similarity of views of the same and different images.

The pair of views is fixed: SimCLR's view twice, whatever views the method declares and whatever `augment` changes. So
the numbers are comparable across methods.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.augment.papers import simclr_view
from eagleray.contracts.evaluator import Encodings, Evaluator
from eagleray.contracts.features import NOISE, evenly, squares, stacked
from eagleray.contracts.metric import Metric

IMAGES = 1024  # at most this many are compared
PAIRED = 512  # at most this many where every pair is looked at: their number grows with the square
ONE_IMAGE = "it sees whether each image is known again in SimCLR's views, not what images have in common"


class Pairs(Evaluator):
    """Cosines and distances of two fixed views (SimCLR's, for every method) of one image and of different images."""

    metrics: ClassVar[dict[str, Metric]] = {
        "alignment": Metric(
            "mean squared distance of two views of one image, on the unit sphere; SimCLR's views for every method",
            "lower",
            no_goal="a collapsed network aligns all views",
            needs=frozenset({"two_views"}),
        ),
        "positive": Metric(
            "mean cosine of two views of one image; SimCLR's views for every method",
            "higher",
            no_goal="a collapsed network makes all views alike",
            needs=frozenset({"two_views"}),
        ),
        "negative": Metric(
            "mean cosine of views of different images; SimCLR's views for every method",
            "lower",
            no_goal="features that ignore the images are the least alike",
            needs=frozenset({"two_views"}),
        ),
        "gap": Metric(
            "energy gap: how far the mean cosine of two views of one image is above that of different images; 0 "
            "collapsed",
            "higher",
            caution=ONE_IMAGE,
            needs=frozenset({"two_views"}),
        ),
        "separability": Metric(
            "chance that two views of one image are more alike than two of different images (AUROC): 0.5 collapsed",
            "higher",
            caution=ONE_IMAGE,
            needs=frozenset({"two_views"}),
        ),
    }

    def __call__(self, encodings: Encodings) -> dict[str, float]:
        view = simclr_view(encodings.image_size)
        return pairs([one.features for one in encodings.views([view, view], IMAGES)])


def pairs(views: Sequence[Tensor]) -> dict[str, float]:
    """Compute metrics of pairs of embeddings.

    One [N, D] for each view of the same N images. With z = x / ‖x‖:

        positive   mean cosine of two views of one image
        negative   mean cosine of views of different images; needs at least two images
        alignment  mean ‖z - z'‖² of two views of one image
        gap        positive - negative. With the energy of a pair E = -cosine, it is the mean energy of incompatible
                   pairs (different images) less that of compatible ones (one image): 0 to 2 where compatible is below
        separability  share of (compatible, incompatible) in which the compatible pair has the lower energy; those
                   that differ by rounding errors count half (the area under the ROC curve); of 512 images

    The means are over ALL pairs, without forming them: a sum of products is a product of sums.

    Raises:
        ConfigError: fewer than two views or no images, NaN or infinite embeddings, or views of different shapes.

    Source: Wang, Isola 2020, https://arxiv.org/abs/2005.10242; energies: LeCun et al. 2006, A Tutorial on Energy-Based
    Learning.
    """
    z = F.normalize(stacked(views, least=2), dim=2)
    number, count, _ = z.shape
    each = squares(z).sum()  # each vector with itself
    same_image = squares(z.sum(0)).sum()  # all pairs of views of one image
    positive = (same_image - each) / (count * number * (number - 1))
    alignment = (2 * each / (number * count) - 2 * positive).clamp_min(0)
    metrics = {"positive": positive.item(), "alignment": alignment.item()}
    if count > 1:
        everything = squares(z.sum((0, 1)))
        metrics["negative"] = ((everything - same_image) / (number**2 * count * (count - 1))).item()
        metrics["gap"] = metrics["positive"] - metrics["negative"]
        metrics["separability"] = separability(*similarities(views))
    return metrics


def similarities(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the cosines of all pairs of views: of one image [P], and of different images [Q].

    Of at most 512 images, evenly spaced; one [N, D] for each view, as for `pairs`.
    """
    z = F.normalize(stacked([evenly(view, PAIRED) for view in views], least=2), dim=2)
    number, count, width = z.shape
    cosines = z.reshape(-1, width) @ z.reshape(-1, width).T
    image = torch.arange(count, device=z.device).repeat(number)
    same, once = image == image[:, None], torch.ones_like(cosines, dtype=torch.bool).triu(1)
    return cosines[same & once], cosines[~same & once]


def separability(positive: Tensor, negative: Tensor) -> float:
    """Return the chance that one of the first is above one of the second, [P] and [Q].

    It is the area under the ROC curve. Those that differ by rounding errors count half.
    """
    ordered, negative = positive.sort().values, negative.contiguous()
    below, reached = (torch.searchsorted(ordered, negative + shift).double().mean() for shift in (-NOISE, NOISE))
    return (1 - (below + reached) / (2 * len(ordered))).item()

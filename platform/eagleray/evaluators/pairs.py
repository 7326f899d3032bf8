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
from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import NOISE, evenly, intervals, squares, stacked
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
            interval="own",
            needs=frozenset({"two_views"}),
        ),
        "positive": Metric(
            "mean cosine of two views of one image; SimCLR's views for every method",
            "higher",
            no_goal="a collapsed network makes all views alike",
            interval="own",
            needs=frozenset({"two_views"}),
        ),
        "negative": Metric(
            "mean cosine of views of different images; SimCLR's views for every method",
            "lower",
            no_goal="features that ignore the images are the least alike",
            interval="own",
            needs=frozenset({"two_views"}),
        ),
        "gap": Metric(
            "energy gap: how far the mean cosine of two views of one image is above that of different images; 0 "
            "collapsed",
            "higher",
            caution=ONE_IMAGE,
            interval="own",
            needs=frozenset({"two_views"}),
        ),
        "separability": Metric(
            "chance that two views of one image are more alike than two of different images (AUROC, of 512 images); "
            "0.5 collapsed",
            "higher",
            caution=ONE_IMAGE,
            no_interval="every image is in a thousand of its pairs; gap, which it goes with, has one",
            needs=frozenset({"two_views"}),
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        view = simclr_view(encodings.image_size)
        views = [one.features for one in encodings.views([view, view], IMAGES)]
        found, each = pairs(views), of_images(views)
        shares = dict(each)
        if "negative" in each:  # in a mean over pairs of images each image has a part in twice as many as its own tell
            shares["negative"] = 2 * each["negative"]
            shares["gap"] = each["positive"] - shares["negative"]
        return Found(found, images=len(each["positive"]), intervals=intervals(found, shares))


def pairs(views: Sequence[Tensor]) -> dict[str, float]:
    """Compute metrics of pairs of embeddings: the means of `of_images`, and of at least two images

        gap        positive - negative. With the energy of a pair E = -cosine, it is the mean energy of incompatible
                   pairs (different images) less that of compatible ones (one image): 0 collapsed, at most 2
        separability  share of (compatible, incompatible) in which the compatible pair has the lower energy; those
                   that differ by rounding errors count half (the area under the ROC curve); of 512 images

    Source: energies: LeCun et al. 2006, A Tutorial on Energy-Based Learning.
    """
    found = {name: values.mean().item() for name, values in of_images(views).items()}
    if "negative" in found:
        found["gap"] = found["positive"] - found["negative"]
        found["separability"] = separability(*similarities(views))
    return found


def of_images(views: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compute metrics of pairs of embeddings for every image, float64 [N].

    One [N, D] for each view of the same N images. With z = x / ‖x‖:

        positive   mean cosine of two views of one image
        negative   mean cosine of views of different images; needs at least two images
        alignment  mean ‖z - z'‖² of two views of one image

    Each is the mean over ALL pairs that an image is in, without forming them: a sum of products is a product of sums.

    Raises:
        ConfigError: fewer than two views or no images, NaN or infinite embeddings, or views of different shapes.

    Source: Wang, Isola 2020, https://arxiv.org/abs/2005.10242
    """
    z = F.normalize(stacked(views, least=2), dim=2)
    number, count, _ = z.shape
    itself = squares(z).sum(0)  # each vector with itself
    same_image = squares(z.sum(0))  # all pairs of views of one image
    positive = (same_image - itself) / (number * (number - 1))
    metrics = {"positive": positive, "alignment": (2 * itself / number - 2 * positive).clamp_min(0)}
    if count > 1:
        everything = z.sum(0) @ z.sum((0, 1))
        metrics["negative"] = (everything - same_image) / (number**2 * (count - 1))
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

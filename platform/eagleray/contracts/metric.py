"""Metrics: what a reported number means.

Also its better direction, whether a sweep may choose by it, what it needs, and the loop's own metrics.
"""

from dataclasses import dataclass
from typing import Literal

Need = Literal[
    "labels",  # of the training images, and images held out for evaluation
    "two_views",  # a method that declares views of its training images
    "tokens",  # an encoder that has tokens (a ViT)
    "stages",  # the run's own encoder, if it tells its stages
    "error",  # a method that reproduces images, and tells how well
    "classifier",  # a method that learns from labels
    "network",  # weights that can be trained further: those of a run, not of a floor
]
Better = Literal["higher", "lower"]
When = Literal["always", "end", "never"]


@dataclass(frozen=True)
class Metric:
    """The meaning of one reported number."""

    meaning: str  # without its name: "share of the images that are classified right"
    better: Better | None = None  # None: neither; a sweep by it must then set its `mode`
    no_goal: str = ""  # why nothing should be chosen by it, as a clause: "losses of …"; empty: a sweep may
    caution: str = ""  # what a choice by it is not worth, as a clause
    needs: frozenset[Need] = frozenset()  # an evaluator is called where everything its metrics need is present
    # "wilson": it is a share of images, each right or wrong; "own": its evaluator returns one; None: it has none
    interval: Literal["wilson", "own"] | None = None
    no_interval: str = ""  # why an evaluator's number has none, as a clause
    headline: bool = False  # shown next to whatever is compared
    of_encoder: bool = False  # grows with the width of the features: pixels and other floors have no comparable value

    @property
    def mode(self) -> Literal["max", "min"] | None:
        """The better direction, as a sweep names it."""
        return None if self.better is None else "max" if self.better == "higher" else "min"


# Why numbers of evaluators have no interval.
GROWS = "it grows with the number of images by more than other images would change it; compare equal numbers"
CHOSEN = "k-means finds the clusters on the same images, so that these are not independent of them"
MAGNITUDE = "it is read by its order of magnitude"
TERM = "it is a term of the loss, and losses of different settings have different scales"  # a `no_goal` of methods

# What the loop itself reports after every epoch.
LOOP = {
    "loss": Metric(
        "the training loss, averaged over an epoch",
        "lower",
        no_goal="losses of different settings have different scales",
    ),
    "images_per_second": Metric("training images a second; evaluating and saving stop the clock", "higher"),
    "z_std": Metric(
        "spread of the embeddings that the loss sees: 1 isotropic, 0 collapsed to a point",
        "higher",
        no_goal="it shows collapse, and says nothing of healthy runs",
    ),
    "z_rank": Metric(
        "effective rank of the embeddings that the loss sees; at most their width",
        "higher",
        no_goal="it is of what the loss sees, whose width is a setting, not of the features",
    ),
}

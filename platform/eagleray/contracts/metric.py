"""What one reported number means: its better end, what it needs, and the metrics of the loop itself."""

from dataclasses import dataclass
from typing import Literal

Need = Literal[
    "labels",  # of the training images, and images held out to be judged
    "two_views",  # a method that declares views of its training images
    "tokens",  # an encoder that has tokens (a ViT)
    "classifier",  # a method that learns from labels
]
Better = Literal["higher", "lower"]
When = Literal["always", "end", "never"]


@dataclass(frozen=True)
class Metric:
    """What one reported number means."""

    meaning: str  # without its name: "share of the images that are classified right"
    better: Better | None = None  # None: neither end is; a sweep then has to say its `mode`
    needs: frozenset[Need] = frozenset()  # an evaluator is called where all that its metrics need is there
    headline: bool = False  # shown beside whatever is compared

    @property
    def mode(self) -> Literal["max", "min"] | None:
        """The better end, as a sweep says it."""
        return None if self.better is None else "max" if self.better == "higher" else "min"


# What the loop itself reports of every epoch.
LOOP = {
    "loss": Metric("the training loss, averaged over an epoch", "lower"),
    "images_per_second": Metric("training images a second; evaluating and saving stop the clock", "higher"),
    "z_std": Metric("spread of the embeddings that the loss sees: 1 isotropic, 0 collapsed to a point", "higher"),
    "z_rank": Metric("effective rank of the embeddings that the loss sees; at most their width", "higher"),
}

"""The contract of an evaluator, and the metrics that runs report. Who adds one reads this file and one neighbour.

An evaluator is one class in one file of `evaluators/`; the file's name is the evaluator's name. What it declares is
read from the SOURCE (see `config/registry.py`), and everything else follows from that: `eagleray check`, what a sweep
accepts as `metric`, tables, pages, descriptions. This file imports no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

if TYPE_CHECKING:
    from torch import Tensor

    from eagleray.contracts.features import Features
    from eagleray.contracts.method import Method
    from eagleray.contracts.view import View
    from eagleray.data.images import Data, Images

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


class Encodings(Protocol):
    """What a network makes of the images. Each part is encoded when first asked for, once for all evaluators."""

    @property
    def seed(self) -> int:
        """The run's."""
        ...

    @property
    def image_size(self) -> int:
        """Side of what the network sees, in pixels."""
        ...

    @property
    def data(self) -> "Data":
        """The images themselves."""
        ...

    @property
    def method(self) -> "Method | None":
        """The method, in evaluation mode; None where a floor is measured."""
        ...

    @property
    def train(self) -> "Features":
        """The training images, only those whose label is known where some are."""
        ...

    @property
    def shown(self) -> "Features":
        """The images that are judged: validation, or test; without either the training images."""
        ...

    @property
    def chosen_on(self) -> "Features | None":
        """Images to choose a setting on, where `shown` may not be looked at (the test part); else None."""
        ...

    @property
    def logits(self) -> "Features":
        """The method's own classifier on the judged images, [N, classes]; needs "classifier"."""
        ...

    def of(self, images: "Images", by: "Callable[[Tensor], Tensor] | None" = None) -> "Features":
        """Any images, encoded by the network or by a function of its inputs [N, C, H, W] -> [N, D]."""
        ...

    def views(self, views: "Sequence[View]", most: int) -> "list[Features]":
        """Views of the judged images (at most so many, evenly spaced), encoded; the same at every call."""
        ...


class Evaluator:
    """Something that is measured of a representation.

    Args:
        config: the run's settings under `evaluate.NAME`: those of this class's own `Config`, and `when`.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):  # its settings, each with default and meaning
        pass

    metrics: ClassVar[dict[str, Metric]]  # all it may return, by name
    when: ClassVar[When] = "always"  # default of `evaluate.NAME.when`: at every evaluation, at the end, or never

    def __init__(self, config: Any):
        self.config = config

    def __call__(self, given: Encodings) -> dict[str, float]:
        """The numbers, by name; only those of `metrics`, and never NaN.

        An evaluator whose metrics need labels is called for the test part too; the numbers are then `test_NAME`.
        """
        raise NotImplementedError

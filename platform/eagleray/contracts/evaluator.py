"""The contract of an evaluator. Who adds one reads this file, `metric.py` and one neighbour.

An evaluator is one class in one file of `evaluators/`; the file's name is the evaluator's name. What it declares is
read from the SOURCE (see `config/registry.py`), and everything else follows from that: `eagleray check`, what a sweep
accepts as `metric`, tables, pages, descriptions. This file imports no torch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from pydantic import BaseModel

from eagleray.contracts.metric import Metric, When

if TYPE_CHECKING:
    from torch import Tensor

    from eagleray.contracts.features import Features
    from eagleray.contracts.method import Method
    from eagleray.contracts.view import View
    from eagleray.data.images import Data, Images


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

    config: BaseModel  # an evaluator writes `config: Config` below its own Config, for type checkers
    metrics: ClassVar[dict[str, Metric]]  # all it may return, by name
    when: ClassVar[When] = "always"  # default of `evaluate.NAME.when`: at every evaluation, at the end, or never

    def __init__(self, config: BaseModel):
        self.config = config

    def __call__(self, given: Encodings) -> dict[str, float]:
        """The numbers, by name; only those of `metrics`, and never NaN.

        An evaluator whose metrics need labels is called for the test part too; the numbers are then `test_NAME`.
        """
        raise NotImplementedError

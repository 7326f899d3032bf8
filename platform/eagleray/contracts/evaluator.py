"""The contract of an evaluator.

To add one, read this file, `metric.py` and one other evaluator. An evaluator is one class in one file of `evaluators/`;
the file's name is the evaluator's name. Its declarations are read from the SOURCE (see `config/registry.py`), and
everything else follows from them: `eagleray check`, what a sweep accepts as `metric`, tables, pages, descriptions. This
file imports no torch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel

from eagleray.contracts.metric import Metric, When

if TYPE_CHECKING:
    from torch import Tensor

    from eagleray.contracts.features import Features
    from eagleray.contracts.method import Method
    from eagleray.contracts.view import View


Data = Any  # a `data.images.Data`, and the images of one of its splits: contracts know nothing of folders above them
Images = Any


class Encodings(Protocol):
    """The images, encoded by a network.

    Each part is encoded at its first use, once for all evaluators.
    """

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the network's input, in pixels."""
        ...

    @property
    def data(self) -> Data:
        """The images themselves."""
        ...

    @property
    def method(self) -> "Method | None":
        """The method in evaluation mode; None for a floor."""
        ...

    @property
    def train(self) -> "Features":
        """The training images; if some are labelled, only those."""
        ...

    @property
    def evaluated(self) -> "Features":
        """The evaluated images.

        They are the validation or test set; without either, the training images.
        """
        ...

    @property
    def validation(self) -> "Features | None":
        """Images to choose a setting on, or None.

        They are given where `evaluated` is the test set, which must not be used for that.
        """
        ...

    @property
    def logits(self) -> "Features":
        """The classifier's logits on the evaluated images, [N, classes].

        Needs "classifier".
        """
        ...

    def of(self, images: Images, by: "Callable[[Tensor], Tensor] | None" = None) -> "Features":
        """Encode any images.

        The network does it, or `by`, a function of its inputs [N, C, H, W] -> [N, D].
        """
        ...

    def views(self, views: "Sequence[View]", most: int) -> "list[Features]":
        """Encode views of at most `most` evaluated images.

        The images are evenly spaced, and the same at every call.
        """
        ...


class Evaluator:
    """A measurement of a representation.

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

    def __call__(self, encodings: Encodings) -> dict[str, float]:
        """Return the numbers by name.

        Only names in `metrics`, and never NaN. An evaluator whose metrics need labels is called for the test set too;
        the numbers are then `test_NAME`.
        """
        raise NotImplementedError

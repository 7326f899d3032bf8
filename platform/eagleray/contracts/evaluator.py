"""The contract of an evaluator.

To add one, read this file, `metric.py` and one other evaluator. An evaluator is one class in one file of `evaluators/`;
the file's name is the evaluator's name. Its declarations are read from the SOURCE (see `config/registry.py`), and
everything else follows from them: `eagleray check`, what a sweep accepts as `metric`, tables, pages, descriptions. This
file imports no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel

from eagleray.contracts.interval import Interval
from eagleray.contracts.metric import Metric, When

if TYPE_CHECKING:
    from torch import Tensor

    from eagleray.contracts.features import Features
    from eagleray.contracts.method import Method
    from eagleray.contracts.view import View


Data = Any  # a `data.images.Data`, and the images of one of its splits: contracts know nothing of folders above them
Images = Any


class Change(Protocol):
    """A change of images before they are encoded."""

    def __call__(self, pixels: "Tensor", /, places: "Tensor") -> "Tensor":
        """Return changed pixels, [n, C, S, S].

        Args:
            pixels: float32 [n, C, S, S] in 0..1, as large as the network takes them.
            places: int64 [n], of the images among those that are changed. What is random follows from them and the
                run's seed, so that it does not depend on how many workers share the images.
        """
        ...


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
    def untrained(self) -> "Features":
        """At most 2,048 of the evaluated images, evenly spaced, by the run's network before any training."""
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

    @property
    def guesses(self) -> "Features | None":
        """The classifier's logits on training images whose labels training does not see, [N, classes].

        At most 2,048 images of known class, evenly spaced; None if all of these are labelled. Needs "classifier".
        """
        ...

    def fine_tuned(
        self, *, epochs: int, lr: float, per_class: int | None = None, fraction: float | None = None
    ) -> "Features":
        """Train a copy of the network, and return its classifier's logits on the evaluated images, [N, classes].

        Needs "network" and "labels". It is trained as by the method `finetune`, once for all evaluated images.

        Args:
            epochs: as many steps as that many passes have over the training images, however few of them are labelled.
            lr: of the recipe of `finetune`.
            per_class: labelled images of each class, drawn by the seed.
            fraction: for it, a share of each class.

        Raises:
            ConfigError: a class has fewer images.
        """
        ...

    @property
    def errors(self) -> "Features":
        """The method's own `error` on the evaluated images, [N, 1].

        Needs "error".
        """
        ...

    @property
    def seen_errors(self) -> "Features":
        """The same on at most 2,048 training images, evenly spaced."""
        ...

    def of(self, images: Images) -> "Features":
        """Encode any images."""
        ...

    def views(self, views: "Sequence[View]", most: int) -> "list[Features]":
        """Encode views of at most `most` evaluated images.

        The images are evenly spaced, and the same at every call.
        """
        ...

    def through(self, encode: "Callable[[Tensor], Tensor]") -> "Encodings":
        """Return the same images, encoded by any function of the network's inputs, [N, C, H, W] -> [N, D]."""
        ...

    def elsewhere(self, data: Data) -> "Encodings":
        """Return the same network on other images.

        Its evaluated images are those of the same split, validation or test.

        Args:
            data: `evaluate.NAME.data`, whose images were loaded before the run started.
        """
        ...

    def changed(self, change: Change, most: int) -> "Features":
        """Encode at most `most` evaluated images, changed; the same images as `views`."""
        ...


Table = Sequence[Sequence[str | float]]  # rows; the first has the heads


@dataclass(frozen=True)
class Found:
    """What an evaluator found, where the numbers alone do not say it.

    Of the test set, names of tables and files begin with `test_`.
    """

    numbers: Mapping[str, float]
    images: int | Mapping[str, int] | None = None  # that were measured, by number if they differ; None: all evaluated
    intervals: Mapping[str, Interval] = field(default_factory=dict)  # of metrics that declare interval="own"
    words: Sequence[str] = ()  # sentences on how to read the numbers
    tables: Mapping[str, Table] = field(default_factory=dict)  # shown, and kept as NAME.csv
    files: Mapping[str, bytes] = field(default_factory=dict)  # kept beside them


class Evaluator:
    """A measurement of a representation.

    Args:
        config: the run's settings under `evaluate.NAME`: those of this class's own `Config`, and `when`.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):  # its settings, each with default and meaning
        pass  # `data: Any = None` is special: the user chooses images there as in `data` of a run; for `elsewhere`

    config: BaseModel  # an evaluator writes `config: Config` below its own Config, for type checkers
    metrics: ClassVar[dict[str, Metric]]  # all it may return, by name
    when: ClassVar[When] = "always"  # default of `evaluate.NAME.when`: at every evaluation, at the end, or never

    def __init__(self, config: BaseModel):
        self.config = config

    def __call__(self, encodings: Encodings) -> dict[str, float] | Found:
        """Return the numbers by name; in a `Found`, if other than all evaluated images were measured.

        Only names in `metrics`, and never NaN. An evaluator whose metrics need labels, or that has images of its own,
        is called for the test set too; the numbers are then `test_NAME`.
        """
        raise NotImplementedError

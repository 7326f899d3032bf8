"""The contract a method fulfils. Who writes a method reads this file and one neighbour, nothing else.

A method is one class in one file of `methods/eagleray_methods/`; the file's name is the method's name. Its nested
`Config` and its class variables are read from the SOURCE (`config/registry.py`), so that `eagleray check` and
`eagleray methods` answer without torch: they may use whatever in the file, or beside it, can be read without torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.recipe import Recipes
from eagleray.contracts.seeds import generator
from eagleray.contracts.view import View

# tokens: an encoder that is open to masked patches (a ViT); trained_encoder: that of a finished run
# (encoder=pretrained); labels: a few labelled images beside all others; only_labels: labelled images alone.
Need = Literal["tokens", "trained_encoder", "labels", "only_labels"]


@dataclass(frozen=True)
class ParameterGroup:
    """A part of a method that trains in its own way.

    `decay` says on what weight decay acts: on weights, which are neither biases and norms nor positions and tokens; on
    all matrices, so on class and mask tokens too; or on nothing, and then LARS does not adapt the rate either.
    """

    module: nn.Module
    lr: float = 1.0  # factor on the learning rate
    decay: Literal["weights", "matrices", "nothing"] = "weights"
    schedule: Literal["recipe", "constant"] = "recipe"  # constant: after the warm-up the rate stays at its peak


class Method(nn.Module):
    """A way to learn a representation from images.

    Args:
        encoder: the network whose features are judged. A method that keeps a teacher copies it.
        config: this class's own `Config`.
        data: what is known of the images.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """This method's hyperparameters, each with default, meaning and range on one line."""

    config: BaseModel  # a method writes `config: Config` below its own Config, for type checkers
    needs: ClassVar[frozenset[Need]] = frozenset()
    metrics: ClassVar[dict[str, str]] = {}  # numbers of its own that a step returns: short name -> meaning
    recipes: ClassVar[Recipes]

    def __init__(self, encoder: Encoder, config: BaseModel, data: DataInfo):
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.data = data

    @property
    def views(self) -> tuple[View, ...]:
        """What each training image is turned into, one entry a view; none where only labelled images are seen."""
        raise NotImplementedError

    @property
    def labelled_views(self) -> tuple[View, ...]:
        """The views of a labelled image: by default the first of `views`."""
        return self.views[:1]

    @property
    def backbone(self) -> nn.Module:
        """What `encoder=pretrained` keeps of a trained run, images [N, C, H, W] -> features [N, D].

        By default the encoder; a method names another where another is judged, or where more is worth keeping.
        """
        return self.encoder

    def draw(self, *when: int) -> torch.Generator:
        """A generator of the run's seed and a step or an epoch, on the CPU; the same on all workers.

        Numbers that belong to images are drawn for the whole batch (`data.batch_size`), and each worker takes its rows
        (`blocks.distributed.own_rows`): so any number of workers computes the same.
        """
        return generator(self.data.seed, *when)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        """The loss of one step. It must be `forward`: DistributedDataParallel synchronises only through it."""
        raise NotImplementedError

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return the parts that train otherwise than the recipe says; by default none."""
        return ()

    def before_epoch(self, epoch: EpochView) -> None:
        """Prepare an epoch: clusters, graphs."""

    def before_step(self, progress: Progress) -> None:
        """After the backward pass and the clipping, before the optimizer: cancel gradients."""

    def after_step(self, progress: Progress) -> None:
        """After the optimizer: move a teacher, a queue, prototypes."""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The representation that evaluation judges: [N, C, H, W] -> [N, D]."""
        return self.encoder(images)

    def classify(self, images: Tensor) -> Tensor:
        """Logits of a method that learns from labels: [N, C, H, W] -> [N, classes]; its accuracy is reported."""
        raise NotImplementedError(f"{type(self).__name__} has no classifier")

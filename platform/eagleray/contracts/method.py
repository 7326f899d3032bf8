"""The contract of a method.

To write one, read this file and one other method, nothing else. A method is one class in one file of
`methods/eagleray_methods/`; the file's name is the method's name. Its nested `Config` and its class variables are read
from the SOURCE (`config/registry.py`), so that `eagleray check` and `eagleray methods` work without torch: they may use
anything in the file, or next to it, that can be read without torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.metric import Metric
from eagleray.contracts.recipe import Recipes
from eagleray.contracts.seeds import generator
from eagleray.contracts.view import View

# tokens: an encoder that accepts masked patches (a ViT); trained_encoder: the encoder of a finished run
# (encoder=pretrained); labels: a few labelled images next to all others; only_labels: labelled images alone.
Need = Literal["tokens", "trained_encoder", "labels", "only_labels"]


@dataclass(frozen=True)
class ParameterGroup:
    """A part of a method with its own optimizer settings.

    `decay` says where weight decay acts: on weights, which excludes biases, norms, positions and tokens; on all
    matrices, which includes class and mask tokens; or on nothing, and then LARS does not adapt the rate either.
    """

    module: nn.Module
    lr: float = 1.0  # factor on the learning rate
    decay: Literal["weights", "matrices", "nothing"] = "weights"
    schedule: Literal["recipe", "constant"] = "recipe"  # constant: after the warm-up the rate stays at its peak


class Method(nn.Module):
    """A way to learn a representation from images.

    Args:
        encoder: the network whose features are evaluated. A method with a teacher copies it.
        config: this class's own `Config`.
        data: facts about the images.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """The method's hyperparameters.

        Each has its default, meaning and range on one line.
        """

    config: BaseModel  # a method writes `config: Config` below its own Config, for type checkers
    needs: ClassVar[frozenset[Need]] = frozenset()
    only_encoder: ClassVar[str | None] = None  # the one that it trains, by name; None: any that has what it needs
    has_error: ClassVar[bool] = False  # whether it can tell how well it reproduces an image, by `error`
    metrics: ClassVar[dict[str, Metric]] = {}  # its own numbers, returned by a step
    recipes: ClassVar[Recipes]
    collapsed_loss: ClassVar[float | None] = None  # what the loss is if all views agree, where only collapse reaches it

    def __init__(self, encoder: Encoder, config: BaseModel, data: DataInfo):
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.data = data

    @property
    def views(self) -> tuple[View, ...]:
        """The views of each training image.

        There are none for a method that sees only labelled images.
        """
        raise NotImplementedError

    @property
    def labelled_views(self) -> tuple[View, ...]:
        """The views of a labelled image.

        By default the first of `views`.
        """
        return self.views[:1]

    @property
    def backbone(self) -> nn.Module:
        """The module that `encoder=pretrained` takes from a run.

        Images [N, C, H, W] -> features [N, D]. By default the encoder; a method returns another if that one is
        evaluated, or if more layers are worth keeping.
        """
        return self.encoder

    def rng(self, *when: int) -> torch.Generator:
        """Return a random generator for a step or epoch.

        It is on the CPU, and the same on all workers. It is seeded with the run's seed and `when`. Draw numbers that
        belong to images for the whole batch (`data.batch_size`), then take this worker's rows
        (`blocks.distributed.own_rows`): so the result does not depend on the number of workers.
        """
        return generator(self.data.seed, *when)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        """Compute the loss of one step.

        It must be `forward`: DistributedDataParallel synchronises only there.
        """
        raise NotImplementedError

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return the parts that do not follow the recipe."""
        return ()

    def change_encoder(self) -> None:
        """Bring the encoder's weights to what this method keeps them at; a second call changes nothing.

        Beside other methods it is called before they copy the encoder, and before their `after_step`; alone, this
        method's `after_step` calls it.
        """

    def before_epoch(self, epoch: EpochView) -> None:
        """Prepare an epoch, for example its clusters or graphs."""

    def before_step(self, progress: Progress) -> None:
        """Change gradients before the optimizer step.

        It runs after the backward pass and the clipping.
        """

    def after_step(self, progress: Progress) -> None:
        """Update teacher, queue or prototypes after the optimizer step."""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images for evaluation: [N, C, H, W] -> [N, D]."""
        return self.encoder(images)

    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return images that show what the method does, by their titles; by default none.

        Images of an evaluation, [N, C, S, S] -> images normalised like them, of any side: [N, C, s, s] if each belongs
        to one of `images`, below which it is shown; any other number stands alone, like samples or a dictionary.
        """
        return {}

    def error(self, images: Tensor) -> Tensor:
        """Return how far what the method makes of an image is from it: [N, C, H, W] -> [N].

        Only for a method that declares `has_error`. Nothing is drawn at random, and an image's number does not depend
        on the others. Training images are compared with unseen ones (`evaluators/unseen.py`).
        """
        raise NotImplementedError(f"{type(self).__name__} reproduces no images")

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits of the method's classifier.

        [N, C, H, W] -> [N, classes]. Only for a method that learns from labels. The accuracy of this classifier is
        reported.
        """
        raise NotImplementedError(f"{type(self).__name__} has no classifier")

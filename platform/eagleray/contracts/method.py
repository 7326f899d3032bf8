"""The contract a method fulfils. Who writes a method reads this file and one neighbour, nothing else.

A method is one class in one file of `methods/eagleray_methods/`; the file's name is the method's name. Its nested
`Config` and its class variables are read from the SOURCE (see `config/registry.py`), so that `eagleray check` and
`eagleray methods` need no torch: they may use literals, pydantic, `contracts.ranges` and `contracts.recipe` only.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.recipe import Recipe
from eagleray.contracts.seeds import generator
from eagleray.contracts.view import View


class Method(nn.Module):
    """A way to learn a representation from images.

    Args:
        encoder: the network whose features are judged. A method that keeps a teacher copies it.
        config: this class's own `Config`.
        data: what is known of the images.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """This method's hyperparameters, each with default, meaning and range on one line."""

    labels: ClassVar[Literal["none", "partial", "only"]] = "none"  # "only": no view of an unlabelled image either
    needs_tokens: ClassVar[bool] = False  # True: works on a ViT's patches (an encoder with .tokens)
    needs_trained: ClassVar[bool] = False  # True: goes on from a trained run's network (encoder=pretrained)
    needs_large_batch: ClassVar[bool] = False  # True: an image is told from those of its batch; the more, the better
    constant_lr: ClassVar[tuple[str, ...]] = ()  # its parts whose learning rate stays at the peak after the warm-up
    plain_lr: ClassVar[tuple[str, ...]] = ()  # its parts trained as biases are: no decay, LARS leaves their rate alone
    metrics: ClassVar[dict[str, str]] = {}  # numbers of its own that a step returns: short name -> meaning
    recipe: ClassVar[Recipe]  # how the paper trains it; Config holds the paper's defaults
    small_recipe: ClassVar[Recipe]  # how it is trained on some 10,000 images of 32 pixels for tens of epochs
    small_settings: ClassVar[dict[str, Any]] = {}  # what of Config differs there

    def __init__(self, encoder: Encoder, config: Any, data: DataInfo):
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

    def before_epoch(self, embed: Callable[[], Tensor], progress: Progress) -> None:
        """Once an epoch: clustering, graphs. `embed()` encodes all training images, [samples, D] in dataset order."""

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

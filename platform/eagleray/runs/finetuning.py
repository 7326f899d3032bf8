"""Train a copy of a run's network further, to evaluate it."""

from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from eagleray.blocks import distributed
from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.config.registry import find
from eagleray.config.sections import Augment, Labels
from eagleray.contracts.batch import Progress
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.seeds import seed_all, seed_weights
from eagleray.data.loader import BatchLoader


@dataclass(frozen=True)
class Tuning:
    """How a network is fine-tuned."""

    labels: Labels
    epochs: int
    lr: float


class Copied(Encoder):
    """A copy of what `encoder=pretrained` would take of a method."""

    def __init__(self, method: Method):
        of, data = method.encoder, method.data
        super().__init__(of.name, of.config, data.image_size, data.channels)
        self.network, self.has_tokens = deepcopy(method.backbone).requires_grad_(), of.has_tokens  # pyright: ignore[reportAttributeAccessIssue]
        size = data.image_size
        with torch.no_grad():
            images = torch.zeros(1, data.channels, size, size, device=next(method.parameters()).device)
            self.dim = self.network.eval()(images).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return features: [N, C, H, W] -> [N, dim]."""
        return self.network(images)


def fine_tuned(method: Method, tuning: Tuning, loader: BatchLoader, autocast: AbstractContextManager) -> Method:
    """Return a copy of a method's network with a classifier, trained as the method `finetune` trains them.

    Every number that is drawn follows from the run's seed; workers share the steps. Torch's global generator is seeded
    for this, and stays seeded.

    Args:
        method: it stays as it is.
        tuning: labels, epochs and learning rate, the same for all layers; all else is as in the small recipe of
            `finetune`.
        loader: of the run, whose images and batch size are taken.
        autocast: the precision of the forward passes.

    Raises:
        ConfigError: a class has too few images.
    """
    finetune, run = find("method", "finetune"), loader.run
    recipe = finetune.values["recipes"].small.model_copy(update={"lr": tuning.lr})
    seed_weights(run.seed)
    tuned: Method = finetune.load()(Copied(method), finetune.Config(), loader.info).to(loader.device)
    run = run.model_copy(update={"labels": tuning.labels, "augment": Augment()})
    batches = BatchLoader(run, loader.data, loader.info, tuned, loader.device)
    optimizer, forward = make_optimizer(tuned, recipe), distributed.data_parallel(tuned.train())
    for epoch in range(tuning.epochs):
        first = epoch * batches.steps_per_epoch
        for step, batch in enumerate(batches.epoch(epoch, 0), first):
            seed_all(run.seed, step)
            progress = Progress(step, batches.steps_per_epoch * tuning.epochs, epoch, tuning.epochs)
            set_rates(optimizer, recipe, run.batch_size, progress)
            with autocast:
                loss = forward(batch, progress).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return tuned.eval()

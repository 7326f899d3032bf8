"""Pseudo-label: the network's own confident predictions are labels of the same images.

Lee 2013, http://deeplearning.net/wp-content/uploads/2013/03/pseudo_label_final.pdf
The labelled images alone move the running statistics of batch norms; the unlabelled ones, in a pass of their own, are
normalised by their batch. So it is in Google's code (google-research/mixmatch, pseudo_label.py), whose threshold,
weight and ramp are the defaults here.
Differs from the paper: an image counts only if its prediction is confident, and the weight is smaller and rises from
the first step. In the paper every image counts, and the weight is 0 for 100 epochs, then rises linearly to 3 at epoch
600. There is no dropout and no pre-training by a denoising autoencoder. Under the small recipe a confidence of 0.6 is
enough: in hundreds of steps few images reach 0.95.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.frozen import frozen_statistics
from eagleray.blocks.losses import precise
from eagleray.blocks.semi_supervised import guesses, linear_ramp, pseudo_label_loss
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class PseudoLabel(Method):
    """Semi-supervised: a confident prediction is the label of the same image."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        threshold: Annotated[
            float,
            Uniform(0, 0.99),
            Field(ge=0, le=1, description="smallest confidence at which a pseudo-label counts"),
        ] = 0.95
        weight: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled loss, after the ramp")
        ] = 1.0
        ramp: Annotated[
            float, Uniform(0, 0.8), Field(ge=0, le=1, description="share of the training in which the weight rises")
        ] = 0.4

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {"confident": Metric("share of unlabelled images whose pseudo-label counts")}
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"threshold": 0.6},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(flip=0.5, shift=0.125),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        labelled = precise(self.classifier(self.encoder(batch.labelled.views[0])))
        with frozen_statistics(self.encoder):
            features = self.encoder(batch.views[0])
        logits = precise(self.classifier(features))
        guessed, counts = guesses(logits, self.config.threshold)
        weight = self.config.weight * linear_ramp(progress.fraction / max(self.config.ramp, 1e-12))
        loss = F.cross_entropy(labelled, batch.labelled.targets) + weight * pseudo_label_loss(guessed, logits, counts)
        return StepResult(loss, [features.detach()], {"confident": counts.mean()})

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))

"""Fine-tuning: pretrained network, new classifier, few labels.

SimCLR v2's second step (Chen et al. 2020, https://arxiv.org/abs/2006.10029, section 2 and appendix B). It starts from
any finished run:

    eagleray train method=finetune encoder.run=runs/eagleray/NAME

A step has `batch_size` labelled images; if there are few, each of them occurs many times in an epoch. With
`method.frozen=true` the classifier alone learns: a linear probe on the same labels.
Differs from the paper: the small recipe uses AdamW, at a low rate since the weights are already good, and the new
classifier learns 200 times as fast; with one rate for both it is behind a linear probe (sweeps/fine_tuning.yaml).
"""

from typing import Annotated, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.losses import precise
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.ranges import LogUniform
from eagleray.contracts.recipe import Recipe, Recipes


class Finetune(Method):
    """Semi-supervised: a pretrained network (encoder.run) and a new classifier learn from few labels."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        frozen: Annotated[
            bool, Field(description="train the classifier alone, on the network as it is: a linear probe")
        ] = False
        crop: Annotated[
            float, LogUniform(0.08, 1), Field(gt=0, le=1, description="least share of an image that a crop shows")
        ] = 0.08
        classifier_lr: Annotated[
            float, LogUniform(1, 1000), Field(gt=0, description="factor on the learning rate of the new classifier")
        ] = 1.0

    config: Config
    needs = frozenset({"trained_encoder", "only_labels"})
    # 0.005 times the square root of the batch size; neither decay nor warm-up.
    recipes = Recipes(
        paper=Recipe(name="lars", lr=0.08, lr_scaling="sqrt", weight_decay=0.0),
        small=Recipe(lr=5e-5, lr_scaling="sqrt", weight_decay=1e-4),
        small_settings={"classifier_lr": 200.0},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)
        nn.init.zeros_(self.classifier.weight)  # as in the paper's code: the first steps hardly change the network
        self.encoder.requires_grad_(not config.frozen)

    @property
    def views(self) -> tuple[View, ...]:
        return ()

    @property
    def labelled_views(self) -> tuple[View, ...]:
        return (View(crop=(self.config.crop, 1.0), flip=0.5),)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.frozen:
            self.encoder.eval()  # the features of an image must not depend on the others of its batch
        return self

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        # LARS scales a step by the size of the weights, and the classifier's start at zero; the paper's code excludes
        # it too.
        return (ParameterGroup(self.classifier, lr=self.config.classifier_lr, decay="nothing"),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        features = self.encoder(batch.labelled.views[0])
        loss = F.cross_entropy(precise(self.classifier(features)), batch.labelled.targets)
        return StepResult(loss, [features.detach()])

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))

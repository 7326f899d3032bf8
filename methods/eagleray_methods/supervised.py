"""Supervised: the baseline, on few labelled images only."""

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.losses import precise
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class Supervised(Method):
    """Baseline: only the few labelled images, with FixMatch's weak view; semi-supervised methods must beat it."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """The baseline has no hyperparameters of its own."""

    config: Config
    needs = frozenset({"only_labels"})
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)

    @property
    def views(self) -> tuple[View, ...]:
        return ()

    @property
    def labelled_views(self) -> tuple[View, ...]:
        return (View(flip=0.5, shift=0.125),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        features = self.encoder(batch.labelled.views[0])
        loss = F.cross_entropy(precise(self.classifier(features)), batch.labelled.targets)
        return StepResult(loss, [features.detach()])

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))

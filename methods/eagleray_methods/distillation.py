"""Distillation: a student learns a trained teacher's predictions.

SimCLR v2's third step (Chen et al. 2020, https://arxiv.org/abs/2006.10029, section 2), equations 3 and 4:

    eagleray train method=distillation method.teacher=runs/eagleray/NAME

The teacher is any finished run whose method has a classifier (finetune, supervised, fixmatch, …). The student may be a
smaller network, or one like the teacher (self-distillation; the paper's temperature is then 0.1).
Differs from the paper: the classifier has no weight decay, where the paper's code adds a decay without LARS. The small
recipe uses Muon.
"""

from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.losses import precise
from eagleray.blocks.normalisation import renormalised
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.metric import Metric
from eagleray.contracts.paths import Place
from eagleray.contracts.ranges import LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes
from eagleray.runs.restore import check_images, trained


class Distillation(Method):
    """Semi-supervised: on all images a student learns the predictions of a trained classifier."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        teacher: Annotated[
            # A dictionary describes how to build the network; saved files contain it instead of a path.
            Place | dict[str, Any],
            Field(description="directory of a finished run whose method has a classifier"),
        ]
        temperature: Annotated[
            float, LogUniform(0.05, 5.0), Field(gt=0, description="of both networks' predictions; below 1: sharper")
        ] = 1.0
        labelled: Annotated[
            float, Uniform(0.0, 0.9), Field(ge=0, lt=1, description="weight of the few labels (equation 4's 1 - alpha)")
        ] = 0.0

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "agreement": Metric("share of images for which both networks predict the same class")
    }
    # 0.1 times the square root of the batch size; the warm-up is a twentieth of 400 epochs.
    recipes = Recipes(paper=Recipe(name="lars", lr=1.6, lr_scaling="sqrt", weight_decay=1e-4, warmup_epochs=20))

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        teacher, plan = trained(config.teacher)
        super().__init__(encoder, config.model_copy(update={"teacher": plan}), data)
        check_teacher(teacher, config.teacher, data)
        self.teacher = teacher.requires_grad_(False)
        self.classifier = nn.Linear(encoder.dim, teacher.data.classes or 0)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.08, 1.0), flip=0.5),)

    @property
    def labelled_views(self) -> tuple[View, ...]:
        return self.views if self.config.labelled else ()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()  # its prediction for an image must not depend on other images
        return self

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        return (ParameterGroup(self.classifier, decay="nothing"),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images, weight = batch.views[0], self.config.labelled
        labelled = batch.labelled.views if batch.labelled and weight else []
        # One pass: batch norm sees labelled and other images together.
        features = self.encoder(torch.cat([images, *labelled]))
        logits, labelled_logits = self.classifier(features).tensor_split([len(images)])
        with torch.no_grad():
            targets = self.teacher.classify(renormalised(images, self.data, self.teacher.data))
        loss = (1 - weight) * distillation_loss(logits, targets, self.config.temperature)
        if labelled and batch.labelled:
            loss = loss + weight * F.cross_entropy(precise(labelled_logits), batch.labelled.targets)
        agreement = (logits.argmax(1) == targets.argmax(1)).float().mean()
        return StepResult(loss, [features.detach()[: len(images)]], {"agreement": agreement})

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy with the teacher (equation 3).

    The student's predictions against the teacher's, both at temperature T:

        loss = - sum over classes y of softmax(teacher / T)_y log softmax(student / T)_y, averaged over the images

    Args:
        student, teacher: [N, classes] logits; no gradient passes through the teacher's.
        temperature: T above.

    Returns:
        A scalar, float32 even inside a bf16 autocast (float64 for float64 logits).
    """
    targets = (precise(teacher.detach()) / temperature).softmax(1)
    return F.cross_entropy(precise(student) / temperature, targets)


def check_teacher(teacher: Method, source: Any, data: DataInfo) -> None:
    """Check that a trained method can teach these images.

    Raises:
        ConfigError: it has no classifier, or was trained on other classes or other kinds of images.
    """
    if type(teacher).classify is Method.classify:
        raise ConfigError(
            f"method.teacher={source} was trained by {type(teacher).__name__}, which has no classifier: fine-tune it "
            f"first (method=finetune encoder.run={source})"
        )
    check_images(f"method.teacher={source}", teacher.data, data.image_size, data.channels)
    if data.classes not in (None, teacher.data.classes):
        raise ConfigError(
            f"method.teacher={source} distinguishes {teacher.data.classes} classes, but these images have "
            f"{data.classes}: use a teacher with the same classes"
        )

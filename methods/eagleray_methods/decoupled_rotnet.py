"""Decoupled RotNet: one half of the features predicts the rotation, the other is alike under all of them.

Feng, Xu, Tao 2019, Self-Supervised Representation Learning by Rotation Feature Decoupling, with the authors' code:
https://github.com/philiptheother/FeatureDecoupling
Images that have no upright side, such as a ball, teach nothing about rotation. With `method.rotations=RUN`, a finished
run of rotnet, those that it takes for upright count less, in the last seventh of the training:

    eagleray train method=decoupled_rotnet method.rotations=runs/eagleray/NAME

That run should have learnt from other images, since it is too sure of those that it has seen. The authors' code reads
the probabilities from a file and does not compute them.
Differs from the paper: without `method.rotations` all images count alike. With it, the probability to be upright is
that of a network that distinguishes four rotations, where the paper trains one to distinguish upright images from all
others. The halves are those of the encoder's pooled features, so that these are trained. The images of a step share
their noise, which does not change the expectation. The authors' code raises the rate again where the weights begin;
here it falls three times. Weight decay excludes biases and norms; the authors' includes them. The small recipe sees an
image tens of times, not hundreds: there the temperature is higher, negatives are fewer, a batch norm keeps the vectors
from drifting in one direction, and crops cover at least half of the image.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.losses import precise
from eagleray.blocks.memory_bank import MemoryBank
from eagleray.blocks.networks import mlp
from eagleray.blocks.normalisation import renormalised
from eagleray.blocks.rotations import four_rotations, rotated
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.paths import Place
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes
from eagleray.runs.restore import check_images, trained


class DecoupledRotNet(Method):
    """Pretext task: half of the features predict a rotation, the others recognise the image under all four."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        alike: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="weight of the distance of an image's four rotations")
        ] = 1.0
        contrast: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="weight of the contrast with other images")
        ] = 1.0
        temperature: Annotated[
            float, LogUniform(0.05, 0.5), Field(gt=0, description="how sharply near images are distinguished")
        ] = 0.07
        negatives: Annotated[
            int, IntRange(256, 16384), Field(ge=1, description="vectors drawn from the bank as noise, in each step")
        ] = 4096
        momentum: Annotated[
            float, Uniform(0, 0.9), Field(ge=0, lt=1, description="share of the old vector in an image's new one")
        ] = 0.5
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the bank's vectors")] = 128
        last_norm: Annotated[bool, Field(description="end the projector with a batch norm")] = False
        crop_min: Annotated[
            float, Uniform(0.08, 1.0), Field(gt=0, le=1, description="smallest area of a random crop")
        ] = 0.08
        rotations: Annotated[
            # A dictionary describes how to build the network; saved files contain it instead of a path.
            Place | dict[str, Any] | None,
            Field(description="directory of a finished run of rotnet that weights images; null: all count alike"),
        ] = None
        power: Annotated[
            float, Uniform(0.5, 4), Field(gt=0, description="of the probability to be upright, in the weights")
        ] = 2.0
        weighted_from: Annotated[
            float, Uniform(0, 1), Field(ge=0, le=1, description="share of the training after which weights count")
        ] = 210 / 245

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "rotation": Metric("share of images whose rotation is recognised"),
        "distance": Metric("mean squared distance of an image's four rotations to their mean", no_goal=TERM),
        "contrast": Metric("noise-contrastive loss of the images", no_goal=TERM),
        "counted": Metric("mean weight of the rotated images: 1 without method.rotations"),
    }
    recipes = Recipes(
        # 0.01 for 192 images.
        paper=Recipe(
            name="sgd", lr=0.01 * 256 / 192, nesterov=True, weight_decay=5e-4, drops=(90 / 245, 130 / 245, 190 / 245)
        ),
        small_settings={"temperature": 0.2, "negatives": 1024, "crop_min": 0.5, "last_norm": True},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        weighing, plan = (None, None) if config.rotations is None else trained(config.rotations)
        super().__init__(encoder, config.model_copy(update={"rotations": plan}), data)
        if weighing is not None:
            check_rotnet(weighing, config.rotations, data)
            weighing.requires_grad_(False)
        self.weighing = weighing
        self.rotation_width = encoder.dim // 2
        self.classifier = nn.Linear(self.rotation_width, 4)
        self.projector = mlp([encoder.dim - self.rotation_width, config.projection], last_norm=config.last_norm)
        self.bank = MemoryBank(data.samples, config.projection)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(self.config.crop_min, 1.0), flip=0.5),)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.weighing is not None:
            self.weighing.eval()  # its prediction for an image must not depend on other images
        return self

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        config, turned = self.config, four_rotations(batch.views[0])  # [4N, C, S, S]
        features = self.encoder(turned)
        rotation, instance = features.tensor_split([self.rotation_width], 1)
        targets = torch.arange(4, device=turned.device).repeat_interleave(len(turned) // 4)
        logits, weights = precise(self.classifier(rotation)), self._weights(turned, progress)
        mean, distance = mean_and_distance(instance.unflatten(0, (4, -1)))
        embedded = self.projector(mean)
        with torch.autocast(turned.device.type, enabled=False):
            vectors = F.normalize(embedded.to(self.bank.rows.dtype), dim=1)  # [N, projection]
            generator = self.rng(progress.step)
            contrast = self.bank.contrast(vectors, batch.indices, config.negatives, config.temperature, generator)
        self.bank.remember(vectors.detach(), batch.indices, config.momentum)
        recognising = (weights * F.cross_entropy(logits, targets, reduction="none")).mean()
        loss = recognising + config.alike * distance + config.contrast * contrast
        return StepResult(
            loss,
            list(features.detach().chunk(4)),
            {
                "rotation": (logits.argmax(1) == targets).float().mean(),
                "distance": distance.detach(),
                "contrast": contrast.detach(),
                "counted": weights[len(turned) // 4 :].mean(),
            },
        )

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Rotate each image, and turn it back by the rotation that is recognised."""
        turned = rotated(images, torch.randint(4, (len(images),), generator=self.rng(0)).to(images.device))
        predicted = self.classifier(self.encoder(turned)[:, : self.rotation_width]).argmax(1)
        return {"turned": turned, "turned back": rotated(turned, -predicted % 4)}

    @torch.no_grad()
    def _weights(self, turned: Tensor, progress: Progress) -> Tensor:
        """Return the weight of each rotated image, [4N]."""
        if self.weighing is None or progress.fraction < self.config.weighted_from:
            return torch.ones(len(turned), device=turned.device)
        features = self.weighing.encoder(renormalised(turned, self.data, self.weighing.data))
        logits = self.weighing.get_submodule("classifier")(features)
        return rotation_weights(precise(logits).softmax(1)[:, 0], self.config.power)


def mean_and_distance(instance: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the rotations of an image with their mean.

    [4, N, D] -> the mean, [N, D], and the mean squared difference of all numbers to it. The paper holds the mean
    constant, which changes nothing: the differences sum to 0, and so does the gradient through it.
    """
    mean = instance.mean(0)
    return mean, (precise(instance) - precise(mean)).square().mean()


def rotation_weights(upright: Tensor, power: float) -> Tensor:
    """Weight rotated images by how surely they do not look upright.

        w = 1 for an upright image, 1 - p^power for a rotated one

    Args:
        upright: p, the probability of each image to be upright, [4N], those that are upright first.
        power: above.
    """
    weights = 1 - upright**power
    weights[: len(upright) // 4] = 1
    return weights


def check_rotnet(weighing: Method, source: Any, data: DataInfo) -> None:
    """Check that a trained method predicts four rotations of these images.

    Raises:
        ConfigError: it does not, or it was trained on other kinds of images.
    """
    head = getattr(weighing, "classifier", None)
    if type(weighing).__name__ != "RotNet" or not isinstance(head, nn.Linear) or head.out_features != 4:
        raise ConfigError(
            f"method.rotations={source} is no run that predicts four rotations: train one with method=rotnet"
        )
    check_images(f"method.rotations={source}", weighing.data, data.image_size, data.channels)

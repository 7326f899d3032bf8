"""DeepCluster: classify images into the clusters of their features.

Caron, Bojanowski, Joulin, Douze 2018, https://arxiv.org/abs/1807.05520
Differs from the paper: no Sobel filter removes the colours, since the encoder is evaluated on whole images; instead
SimCLR's views make colours unreliable. The clustered features are the encoder's, and the classifier is one linear layer
on them. Every image is used once per epoch and weighted by the inverse size of its cluster, which section 3.3 calls
equivalent to sampling evenly over clusters. Each clustering gets a new classifier, but the optimizer keeps its state of
the old one. Weight decay excludes biases and norms; the authors' includes them. Small data sets have few images, so the
small recipe uses a hundredth of the clusters and fewer components.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View, simclr_view
from eagleray.blocks.distributed import broadcast
from eagleray.blocks.kmeans import kmeans
from eagleray.blocks.losses import precise
from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import IntRange
from eagleray.contracts.recipe import Recipe, Recipes

BLOCK = 2**22  # numbers computed at a time: 16 MB, or 32 in float64


class DeepCluster(Method):
    """Clustering: in each epoch the network learns the clusters of its own features as classes."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        clusters: Annotated[int, IntRange(20, 1000), Field(ge=2, description="ten times the classes work well")] = 10000
        components: Annotated[
            int, IntRange(16, 256), Field(ge=1, description="principal components of the features that are clustered")
        ] = 256
        iterations: Annotated[int, Field(ge=1, description="of k-means")] = 20
        every: Annotated[int, IntRange(1, 5), Field(ge=1, description="epochs between two clusterings")] = 1

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "recognised": Metric("share of images whose cluster is recognised"),
        "largest": Metric("share of all images in the largest cluster"),
    }
    recipes = Recipes(
        paper=Recipe(name="sgd", lr=0.05, weight_decay=1e-5, final_lr=1.0),
        small_settings={"clusters": 100, "components": 32},
    )

    assignments: Tensor
    sizes: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        if config.clusters > data.samples:
            raise ConfigError(
                f"method.clusters={config.clusters} is more than the {data.samples} training images: "
                f"take {max(2, data.samples // 10)}, which gives each about ten"
            )
        if config.components > encoder.dim:
            raise ConfigError(
                f"method.components={config.components} is more than the encoder's {encoder.dim} features: "
                f"take {encoder.dim} or fewer"
            )
        self.classifier = nn.Linear(encoder.dim, config.clusters)
        self.register_buffer("assignments", torch.arange(data.samples) % config.clusters)
        self.register_buffer("sizes", self.assignments.bincount(minlength=config.clusters))

    @property
    def views(self) -> tuple[View, ...]:
        return (simclr_view(self.data.image_size),)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        # The last epoch too has a new classifier, which needs a high rate to learn.
        return (ParameterGroup(self.classifier, schedule="constant"),)

    @torch.no_grad()
    def before_epoch(self, epoch: EpochView) -> None:
        number = epoch.progress.epoch
        if number % self.config.every:
            return
        points = F.normalize(whiten(epoch.embed(), self.config.components), dim=1)
        assignments = kmeans(points, self.config.clusters, self.config.iterations, self.rng(number))
        # K-means amplifies differences in the last digit, which workers on different machines may have.
        self.assignments.copy_(broadcast(assignments))
        self.sizes.copy_(self.assignments.bincount(minlength=self.config.clusters))
        # New clusters are unrelated to old ones of the same number. Their classifier has its own generator, because
        # the number of draws in k-means depends on the last digit too.
        weight = torch.randn(self.classifier.weight.shape, generator=self.rng(number, 1))
        self.classifier.weight.copy_(weight * 0.01)
        self.classifier.bias.zero_()

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        features = self.encoder(batch.views[0])
        targets = self.assignments[batch.indices]
        logits = precise(self.classifier(features))
        # Not the weighted mean of the batch: its divisor would depend on the distribution over workers.
        weights = evening(self.sizes.to(logits.dtype))[targets]
        loss = (weights * F.cross_entropy(logits, targets, reduction="none")).mean()
        recognised = (logits.detach().argmax(1) == targets).float().mean()
        largest = self.sizes.max() / self.sizes.sum()
        return StepResult(loss, [features.detach()], {"recognised": recognised, "largest": largest})


def evening(sizes: Tensor) -> Tensor:
    """Return weights that give all clusters the same total.

    The weight of an image in each cluster. [K] -> [K], 1 on average over images
    """
    return sizes.sum() / (sizes.clamp(min=1) * (sizes > 0).sum())


def whiten(features: Tensor, components: int) -> Tensor:
    """Compute principal components of features, at unit variance.

    [N, D] -> [N, components]. Components without variance become zero; scaling them would only amplify noise.
    """
    blocks = features.split(max(1, BLOCK // features.shape[1]))  # all of it in float64 would need twice the memory
    mean = sum(block.double().sum(0) for block in blocks) / len(features)
    covariance = sum((block - mean).T @ (block - mean) for block in blocks) / len(features)
    variances, axes = torch.linalg.eigh(covariance)  # ascending
    variances, axes = variances[-components:], axes[:, -components:]
    axes = axes * torch.where(variances > 1e-9 * variances[-1], variances, torch.inf).rsqrt()
    return torch.cat([((block - mean) @ axes).to(features.dtype) for block in blocks])

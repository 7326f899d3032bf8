"""DeepCluster: the clusters of its own features are, for an epoch, the classes that the network learns.

Caron, Bojanowski, Joulin, Douze 2018, https://arxiv.org/abs/1807.05520
Differs from the paper: no Sobel filter takes the colours away, since it is the encoder on whole images that is judged;
SimCLR's views make them unreliable. The features clustered are the encoder's, the classifier is one linear layer on
them. Images are seen once an epoch and weighted by the inverse of the size of their cluster, which section 3.3 calls
equivalent to sampling evenly over clusters. The classifier is new with each clustering, what the optimizer remembers of
the old one is not. Weight decay spares biases and norms, which the authors' does not. Small images are few: the small
recipe makes a hundredth of the clusters of fewer components.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View, simclr_view
from eagleray.blocks.distributed import broadcast
from eagleray.blocks.losses import precise
from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.ranges import IntRange
from eagleray.contracts.recipe import Recipe, Recipes

BLOCK = 2**22  # numbers formed at a time: 16 MB, or 32 in float64


class DeepCluster(Method):
    """Clustering: the clusters of its own features are, for an epoch, the classes that the network learns."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        clusters: Annotated[int, IntRange(20, 1000), Field(ge=2, description="ten times the classes serve well")] = (
            10000
        )
        components: Annotated[
            int, IntRange(16, 256), Field(ge=1, description="principal components of the features that are clustered")
        ] = 256
        iterations: Annotated[int, Field(ge=1, description="of k-means")] = 20
        every: Annotated[int, IntRange(1, 5), Field(ge=1, description="epochs between two clusterings")] = 1

    config: Config
    metrics: ClassVar[dict[str, str]] = {
        "recognised": "share of images whose cluster is recognised",
        "largest": "share of all images that the largest cluster holds",
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
                f"take {max(2, data.samples // 10)}, which leaves each about ten"
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
        # A classifier that is new in the last epoch too has to learn in it.
        return (ParameterGroup(self.classifier, schedule="constant"),)

    @torch.no_grad()
    def before_epoch(self, epoch: EpochView) -> None:
        number = epoch.progress.epoch
        if number % self.config.every:
            return
        points = F.normalize(whiten(epoch.embed(), self.config.components), dim=1)
        found = kmeans(points, self.config.clusters, self.config.iterations, self.generator(number))
        # K-means amplifies the last digit, in which workers on unlike machines may differ.
        self.assignments.copy_(broadcast(found))
        self.sizes.copy_(self.assignments.bincount(minlength=self.config.clusters))
        # The new clusters have nothing to do with the old ones of the same number. Their classifier has a generator of
        # its own, as how often k-means draws hangs on the last digit too.
        weight = torch.randn(self.classifier.weight.shape, generator=self.generator(number, 1))
        self.classifier.weight.copy_(weight * 0.01)
        self.classifier.bias.zero_()

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        features = self.encoder(batch.views[0])
        targets = self.assignments[batch.indices]
        logits = precise(self.classifier(features))
        # No weighted mean of the batch: its divisor would depend on how the batch is shared out.
        weights = evening(self.sizes.to(logits.dtype))[targets]
        loss = (weights * F.cross_entropy(logits, targets, reduction="none")).mean()
        found = (logits.detach().argmax(1) == targets).float().mean()
        largest = self.sizes.max() / self.sizes.sum()
        return StepResult(loss, [features.detach()], {"recognised": found, "largest": largest})


def evening(sizes: Tensor) -> Tensor:
    """What an image of each cluster counts, so that all clusters count alike: [K] -> [K], 1 on average over images."""
    return sizes.sum() / (sizes.clamp(min=1) * (sizes > 0).sum())


def whiten(features: Tensor, components: int) -> Tensor:
    """The principal components of features, each scaled to unit variance: [N, D] -> [N, components].

    Components without variance become zero; noise would be all that scaling could show of them.
    """
    blocks = features.split(max(1, BLOCK // features.shape[1]))  # the whole in float64 would take twice its memory
    mean = sum(block.double().sum(0) for block in blocks) / len(features)
    covariance = sum((block - mean).T @ (block - mean) for block in blocks) / len(features)
    variances, axes = torch.linalg.eigh(covariance)  # ascending
    variances, axes = variances[-components:], axes[:, -components:]
    axes = axes * torch.where(variances > 1e-9 * variances[-1], variances, torch.inf).rsqrt()
    return torch.cat([((block - mean) @ axes).to(features.dtype) for block in blocks])


def kmeans(points: Tensor, clusters: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from random points; an empty cluster gets one side of another: [N, D] -> [N] int64.

    The same points and generator give the same clusters, but for the last digits that a GPU sums in any order.
    """
    start = torch.randperm(len(points), generator=generator)[:clusters].to(points.device)
    found = split_empty(points, nearest(points, points[start]), clusters, generator)
    for _ in range(iterations):
        before, found = found, split_empty(points, nearest(points, means(points, found, clusters)), clusters, generator)
        if torch.equal(found, before):
            break
    return found


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each point: [N, D], [K, D] -> [N] int64."""
    offset = centroids.square().sum(1) / 2
    blocks = points.split(max(1, BLOCK // len(centroids)))
    return torch.cat([(block @ centroids.T - offset).argmax(1) for block in blocks])


def means(points: Tensor, found: Tensor, clusters: int) -> Tensor:
    """The mean of each cluster's points, 0 where there are none: [N, D], [N] -> [clusters, D]."""
    totals = points.new_zeros(clusters, points.shape[1]).index_add_(0, found, points)
    return totals / found.bincount(minlength=clusters).clamp(min=1).unsqueeze(1)


def split_empty(points: Tensor, found: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Gives every empty cluster what lies on one side of the centre of another, drawn at random (section 3.3).

    That is what two copies of the centre, moved apart a little, would leave each other.
    """
    sizes = found.bincount(minlength=clusters).cpu()
    for empty in (sizes == 0).nonzero().flatten().tolist():
        donor = int(torch.multinomial((sizes - 1).clamp(min=0).float(), 1, generator=generator))
        members = (found == donor).nonzero().flatten()
        apart = points[members] - points[members].mean(0)
        direction = torch.randn(points.shape[1], generator=generator).to(points)
        moved = members[apart @ direction > 0]
        found[moved] = empty
        sizes[empty], sizes[donor] = len(moved), len(members) - len(moved)
    return found

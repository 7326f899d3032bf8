"""CoMatch: pseudo-labels that neighbours smooth, and a graph of them that the embeddings learn.

Li, Xiong, Hoi 2021, https://arxiv.org/abs/2011.11183
The weak view's prediction is divided by the mean of recent ones, and mixed with those of similar images in a memory. It
is the label of the first strong view; the second strong view's embedding is as similar to the first's as pseudo-labels
are. The graph is of all workers' images. Batch norm sees labelled images and all three views in one pass.
Differs from the paper: the projector's hidden layer has a ReLU, the authors' a leaky one. The memory holds a given
number of images, labelled and others, the paper's five batches; as there, it smooths once it is full. The logarithm of
the contrast is exact, the authors' is of 1e-7 more. `weight` multiplies both unlabelled losses, so that 0 leaves the
labelled loss alone. The learning rate falls by half a cosine to 0.195 of its peak, the value at which the paper's 7/16
of a cosine ends. RandAugment always performs two of torchvision's fourteen operations, at FixMatch's magnitude; the
authors' performs each with probability 1/2, but more strongly. Under the small recipe a confidence of 0.6 is enough,
and the average is faster.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import gather, rank
from eagleray.blocks.losses import normalised, precise
from eagleray.blocks.networks import frozen_copy, mlp
from eagleray.blocks.semi_supervised import cross_entropy_with, follow, mean_prediction
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes


class CoMatch(Method):
    """Semi-supervised: FixMatch with pseudo-labels smoothed by a memory, and contrast of embeddings by their graph."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        threshold: Annotated[
            float,
            Uniform(0.5, 0.99),
            Field(ge=0, le=1, description="smallest confidence at which a pseudo-label counts"),
        ] = 0.95
        weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of the unlabelled losses")] = 1.0
        contrast: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="of the contrast, in the unlabelled losses")
        ] = 1.0
        edge: Annotated[
            float, Uniform(0.2, 0.9), Field(ge=0, le=1, description="smallest similarity of connected pseudo-labels")
        ] = 0.8
        temperature: Annotated[
            float, LogUniform(0.05, 0.5), Field(gt=0, description="how sharply embeddings are compared")
        ] = 0.2
        own: Annotated[
            float, Uniform(0.5, 1), Field(ge=0, le=1, description="share of an image's own prediction in its label")
        ] = 0.9
        memory: Annotated[int, IntRange(256, 8192), Field(ge=1, description="images that smooth pseudo-labels")] = 2560
        alignment: Annotated[
            int, IntRange(8, 128), Field(ge=1, description="steps whose mean prediction is made even")
        ] = 32
        projection: Annotated[int, IntRange(32, 512), Field(ge=2, description="width of the embeddings")] = 64
        momentum: Annotated[
            float,
            Uniform(0.9, 0.9999),
            Field(ge=0, le=1, description="of the averaged model that is evaluated"),
        ] = 0.999

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "confident": Metric("share of unlabelled images whose pseudo-label counts"),
        "connected": Metric("mean number of images in a batch that an image's pseudo-label is similar to, itself too"),
        "contrast": Metric("cross-entropy of the embeddings' graph with that of pseudo-labels", "lower", no_goal=TERM),
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"threshold": 0.6, "momentum": 0.97},
    )

    embedded: Tensor
    predicted: Tensor
    recent: Tensor
    counts: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        classes = data.classes or 0
        self.classifier = nn.Linear(encoder.dim, classes)
        self.projector = mlp([encoder.dim, encoder.dim, config.projection], norm=False)
        self.average = frozen_copy(nn.Sequential(self.encoder, self.classifier))
        # The memory's images, [memory, ...], and mean predictions of recent steps, [alignment, classes]; the oldest
        # rows are overwritten first. How many were written so far, [2].
        self.register_buffer("embedded", torch.zeros(config.memory, config.projection))
        self.register_buffer("predicted", torch.zeros(config.memory, classes))
        self.register_buffer("recent", torch.zeros(config.alignment, classes))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))

    @property
    def views(self) -> tuple[View, ...]:
        contrasted = View(crop=(0.2, 1.0), flip=0.5, grayscale=0.2, jitter=1.0, jitter_scale=(0.4, 0.4, 0.4, 0.1))
        return View(flip=0.5, shift=0.125), View(flip=0.5, shift=0.125, randaugment=(2, 10), cutout=0.5), contrasted

    @property
    def backbone(self) -> nn.Module:
        return self.average[0]

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        targets, config = batch.labelled.targets, self.config
        features = self.encoder(torch.cat([batch.labelled.views[0], *batch.views]))
        logits, embedded = precise(self.classifier(features)), normalised(self.projector(features))
        sizes = [len(targets), *map(len, batch.views)]
        labelled, weak, strong, _ = logits.split(sizes)
        anchors, memorable, first, second = embedded.split(sizes)
        with torch.autocast(logits.device.type, enabled=False):  # similarities need more than bf16's three digits
            with torch.no_grad():
                aligned = self._aligned(weak)
                labels = self._smoothed(aligned, memorable)
                self._remember(memorable, aligned)
                self._remember(anchors, F.one_hot(targets, logits.shape[1]).to(aligned.dtype))
            graph = label_graph(labels, config.edge)
            contrast = graph_contrast(graph, first, second, config.temperature)
        counts = (labels.amax(1) >= config.threshold).to(logits.dtype)
        unlabelled = (cross_entropy_with(labels, strong) * counts).mean() + config.contrast * contrast
        loss = F.cross_entropy(labelled, targets) + config.weight * unlabelled
        connected = (graph > 0).sum(1).to(logits.dtype).mean()
        metrics = {"confident": counts.mean(), "connected": connected, "contrast": contrast}
        return StepResult(loss, [first.detach(), second.detach()], metrics)

    def _aligned(self, weak: Tensor) -> Tensor:
        """Divide predictions by the mean of recent steps, this one among them, and make each sum 1, [N, classes]."""
        self.recent[self.counts[1] % len(self.recent)] = mean_prediction(weak).to(self.recent.dtype)
        self.counts[1] += 1
        total = self.recent.sum(0)  # as good as their mean: each row is divided by its sum
        ratio = weak.softmax(1) / total.clamp(min=torch.finfo(total.dtype).tiny)
        return ratio / ratio.sum(1, keepdim=True)

    def _smoothed(self, aligned: Tensor, embedded: Tensor) -> Tensor:
        """Mix predictions with those of similar images in the memory, once it is full."""
        near = (embedded @ self.embedded.to(embedded.dtype).T / self.config.temperature).softmax(1)
        mixed = torch.lerp(near @ self.predicted.to(aligned.dtype), aligned, self.config.own)
        return torch.where(self.counts[0] >= len(self.embedded), mixed, aligned)

    def _remember(self, embedded: Tensor, predicted: Tensor) -> None:
        """Write all workers' images into the memory."""
        size = len(self.embedded)
        embedded, predicted = gather(embedded), gather(predicted)
        rows = torch.arange(len(embedded), device=embedded.device)[-size:]
        places = (self.counts[0] + rows) % size
        self.embedded[places] = embedded[rows].to(self.embedded.dtype)
        self.predicted[places] = predicted[rows].to(self.predicted.dtype)
        self.counts[0] += len(embedded)

    def after_step(self, progress: Progress) -> None:
        follow(self.average, self.config.momentum, self.encoder, self.classifier)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.average[0](images)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.average(images)


def label_graph(labels: Tensor, edge: float) -> Tensor:
    """Connect images of similar pseudo-labels, over all workers.

    The weight of two images is the product of their labels, 0 where it is below `edge`; an image's with itself is 1.
    Each row sums to 1.

    Args:
        labels: probabilities of this worker's images, [n, classes].
        edge: smallest weight that is kept.

    Returns:
        [n, N], without gradient.
    """
    labels = labels.detach()
    rows = torch.arange(len(labels), device=labels.device)
    weights = labels @ gather(labels).T
    weights[rows, rank() * len(labels) + rows] = 1
    weights = weights * (weights >= edge)
    return weights / weights.sum(1, keepdim=True)


def graph_contrast(graph: Tensor, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy of the embeddings' graph with that of pseudo-labels.

    With similarities exp(z_i·z'_j / T) of the first view of image i and the second of j, each row divided by its sum.

    Args:
        graph: of this worker's images and all, [n, N], each row sums to 1.
        first, second: embeddings of this worker's images at length 1, [n, D].
        temperature: T.

    Returns:
        The mean over this worker's images.
    """
    return cross_entropy_with(graph, first @ gather(second).T / temperature).mean()

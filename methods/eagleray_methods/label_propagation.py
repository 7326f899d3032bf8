"""Label propagation: labels spread over a graph of the images' nearest neighbours, again before each epoch.

Iscen, Tolias, Avrithis, Chum 2019, https://arxiv.org/abs/1904.04717
The pseudo-labels weigh as much as they are certain, and classes alike. The labelled images are among all others too,
there with their own labels, and are drawn again beside them. An image that no label reaches does not count. Batch norm
sees labelled and other images in one pass, also in the epochs with labels alone. As in the authors' code, each class
starts with the same total, twenty steps of conjugate gradients are not run to convergence, and certainties are divided
by the largest.
Differs from the paper: the labels alone are learnt for a share of one training, not in a training before it, and the
labelled images drawn beside the others have no class weights. Features have length 1 in the graph alone, not before the
classifier. The optimizer is the one that all semi-supervised methods are compared with. The variant with a mean teacher
is not here. The small recipe starts to spread labels earlier.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import broadcast
from eagleray.blocks.losses import precise
from eagleray.blocks.semi_supervised import pseudo_label_loss
from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import SEMI_SUPERVISED, SEMI_SUPERVISED_SMALL, SEMI_SUPERVISED_STEPS, Recipes

BLOCK = 2**22  # similarities computed at a time: 16 MB, or 32 in float64
TOLERANCE = 1e-6  # residual, relative to the labels, at which conjugate gradients end


class LabelPropagation(Method):
    """Semi-supervised: in each epoch labels spread to nearest neighbours, and the network learns them."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of the pseudo-labels' loss")] = 1.0
        labels_only: Annotated[
            float, Uniform(0, 0.5), Field(ge=0, le=1, description="share of the training before labels spread")
        ] = 0.5
        neighbours: Annotated[int, IntRange(5, 100), Field(ge=1, description="of each image in the graph")] = 50
        spread: Annotated[
            float, Uniform(0.5, 0.99), Field(ge=0, lt=1, description="how far labels spread; 0: nowhere")
        ] = 0.99
        power: Annotated[float, Uniform(1, 5), Field(ge=0, description="of the similarity of two neighbours")] = 3.0
        iterations: Annotated[int, IntRange(10, 50), Field(ge=1, description="of conjugate gradients, at most")] = 20

    config: Config
    needs = frozenset({"labels"})
    metrics: ClassVar[dict[str, Metric]] = {
        "certainty": Metric("mean certainty of the pseudo-labels: 1 a single class, 0 all alike, or no label yet"),
        "kept": Metric("share of images whose prediction is their pseudo-label, of those that have one"),
    }
    recipes = Recipes(
        paper=SEMI_SUPERVISED,
        paper_steps=SEMI_SUPERVISED_STEPS,
        small=SEMI_SUPERVISED_SMALL,
        small_settings={"labels_only": 0.2},
    )

    labels: Tensor
    certainty: Tensor
    balance: Tensor

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.classifier = nn.Linear(encoder.dim, data.classes or 0)
        # Of each image, at its index; before labels spread no image is certain, and none counts.
        self.register_buffer("labels", torch.zeros(data.samples, dtype=torch.long))
        self.register_buffer("certainty", torch.zeros(data.samples))
        self.register_buffer("balance", torch.ones(data.classes or 0))  # weight of each class

    @property
    def views(self) -> tuple[View, ...]:
        return (View(flip=0.5, shift=0.125),)

    @torch.no_grad()
    def before_epoch(self, epoch: EpochView) -> None:
        if epoch.progress.fraction < self.config.labels_only:
            return
        assert epoch.labelled is not None
        config, (places, targets) = self.config, epoch.labelled
        graph = neighbour_graph(epoch.embed(), config.neighbours, config.power)
        scores = propagated(graph, places, targets, len(self.balance), config.spread, config.iterations)
        found = pseudo_labels(scores, places, targets)
        # Neighbours depend on the last digits of the features, which workers on different machines may not share.
        for buffer, value in zip((self.labels, self.certainty, self.balance), found, strict=True):
            buffer.copy_(broadcast(value))

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        assert batch.labelled is not None
        targets = batch.labelled.targets
        features = self.encoder(torch.cat([batch.labelled.views[0], batch.views[0]]))
        labelled, logits = precise(self.classifier(features)).tensor_split([len(targets)])
        labels, certainty = self.labels[batch.indices], self.certainty[batch.indices]
        unlabelled = pseudo_label_loss(labels, logits, certainty * self.balance[labels])
        loss = F.cross_entropy(labelled, targets) + self.config.weight * unlabelled
        kept = ((logits.detach().argmax(1) == labels) & (certainty > 0)).sum() / (certainty > 0).sum().clamp(min=1)
        return StepResult(loss, [features.detach()[len(targets) :]], {"certainty": certainty.mean(), "kept": kept})

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))


def neighbour_graph(features: Tensor, neighbours: int, power: float) -> Tensor:
    """Connect each image with its nearest neighbours.

    With v the features at length 1, A_ij = max(v_i·v_j, 0)^power if j is a neighbour of i, else 0:

        W = A + A^T,    S = D^(-1/2) W D^(-1/2),    D the diagonal of the sums of W's rows

    An image without any similar neighbour has a row of zeros.

    Args:
        features: [N, D].
        neighbours: of each image, itself not counted; all others if they are fewer.
        power: above.

    Returns:
        S, sparse float64 [N, N].
    """
    points, count = F.normalize(features, dim=1), len(features)
    neighbours = min(neighbours, count - 1)
    values, columns = [], []
    for rows in torch.arange(count, device=points.device).split(max(1, BLOCK // count)):
        # An image is not its own neighbour, even if another equals it and comes first.
        similarity = (points[rows] @ points.T).scatter_(1, rows[:, None], -torch.inf)
        nearest = similarity.topk(neighbours, 1)
        values.append(nearest.values)
        columns.append(nearest.indices)
    weights = torch.cat(values).double().clamp(min=0).pow(power).flatten()
    ends = torch.stack(
        [torch.arange(count, device=points.device).repeat_interleave(neighbours), torch.cat(columns).flatten()]
    )
    both = torch.cat([ends, ends.flip(0)], 1)
    graph = torch.sparse_coo_tensor(both, weights.repeat(2), (count, count), check_invariants=False).coalesce()
    ends, weights = graph.indices(), graph.values()
    degrees = weights.new_zeros(count).index_add_(0, ends[0], weights)
    scale = torch.where(degrees > 0, degrees, torch.inf).rsqrt()
    weights = weights * scale[ends[0]] * scale[ends[1]]
    return torch.sparse_coo_tensor(ends, weights, (count, count), is_coalesced=True, check_invariants=False)


def propagated(graph: Tensor, places: Tensor, targets: Tensor, classes: int, spread: float, iterations: int) -> Tensor:
    """Spread labels over a graph: solve (I - spread S) Z = Y by conjugate gradients.

    Y (equation 5) is 1 / (labelled images of the class) at a labelled image and its class, else 0; a class without
    labels has a column of zeros, and so has Z.

    Args:
        graph: S, sparse [N, N].
        places, targets: of the labelled images, int64 [L].
        classes: how many there are.
        spread: above, below 1.
        iterations: at most.

    Returns:
        Z without its negative values, [N, classes].
    """
    start = torch.zeros(len(graph), classes, dtype=graph.dtype, device=graph.device)
    start[places, targets] = 1 / targets.bincount(minlength=classes).to(start.dtype)[targets]
    solution, residual, direction = torch.zeros_like(start), start, start
    size = start.square().sum(0)  # of each column, which is a problem of its own
    enough = TOLERANCE**2 * size
    for _ in range(iterations):
        goes_on = size > enough
        image = direction - spread * torch.sparse.mm(graph, direction)
        step = torch.where(goes_on, size / (direction * image).sum(0), 0)
        solution = solution + step * direction
        residual = residual - step * image
        after = residual.square().sum(0)
        direction = residual + torch.where(goes_on, after / size, 0) * direction
        size = after
    return solution.clamp(min=0)


def pseudo_labels(scores: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn scores into labels and weights (equation 11).

    With p a row of scores divided by its sum, an image's certainty is 1 - H(p) / log(classes), divided by the largest
    one; a class weighs (images / classes) / (images of the class). An image with scores of 0 has no label: its
    certainty is 0, and it is in no class. Labelled images have their own label, and certainty 1.

    Args:
        scores: [N, classes].
        places, targets: of the labelled images, int64 [L].

    Returns:
        Labels int64 [N], certainties [N], and weights of the classes, [classes].
    """
    classes = scores.shape[1]
    sums = scores.sum(1, keepdim=True)
    probabilities = scores / torch.where(sums > 0, sums, 1)
    entropy = -torch.xlogy(probabilities, probabilities).sum(1)
    certainty = torch.where(sums[:, 0] > 0, 1 - entropy / math.log(classes), 0).clamp(min=0)
    certainty = certainty / certainty.max().clamp(min=torch.finfo(certainty.dtype).tiny)
    labels, has_label = scores.argmax(1), sums[:, 0] > 0
    labels[places], certainty[places], has_label[places] = targets, 1.0, True
    sizes = labels[has_label].bincount(minlength=classes)
    return labels, certainty, sizes.sum() / classes / sizes.clamp(min=1)

"""CoMatch against its algorithm with one image after the other, over steps that fill and overwrite its memory."""

import math

import pytest
import torch

from eagleray.contracts.batch import Batch
from eagleray_methods.comatch import CoMatch, graph_contrast, label_graph
from gradients import assert_two_are_one, of_own_part
from method_cases import NOW, batch_of, small

SMALL = ["method.memory=30", "method.alignment=2", "method.projection=4", "method.threshold=0.5", "method.edge=0.4"]


class Reference:
    """Its memory, its pseudo-labels and its loss, in plain numbers and sums."""

    def __init__(self, memory: int, alignment: int):
        self.size, self.alignment = memory, alignment
        self.memory: list[tuple[list[float], list[float]]] = []  # embeddings and predictions, the newest last
        self.seen, self.means = 0, []

    def labels(self, weak: list[list[float]], embedded: list[list[float]]) -> tuple[list[list[float]], ...]:
        self.means.append([sum(p[c] for p in weak) / len(weak) for c in range(3)])
        recent = self.means[-self.alignment :]
        mean = [sum(m[c] for m in recent) / len(recent) for c in range(3)]
        aligned = [[p[c] / mean[c] for c in range(3)] for p in weak]
        aligned = [[q / sum(p) for q in p] for p in aligned]
        if self.seen < self.size:
            return aligned, aligned
        smoothed = []
        for own, z in zip(aligned, embedded, strict=True):
            near = [math.exp(sum(a * b for a, b in zip(z, other, strict=True)) / 0.2) for other, _ in self.memory]
            mixed = [sum(w * p[c] for w, (_, p) in zip(near, self.memory, strict=True)) / sum(near) for c in range(3)]
            smoothed.append([0.9 * a + 0.1 * b for a, b in zip(own, mixed, strict=True)])
        return smoothed, aligned

    def remember(self, embedded: list[list[float]], predicted: list[list[float]]) -> None:
        self.memory = [*self.memory, *zip(embedded, predicted, strict=True)][-self.size :]
        self.seen += len(embedded)

    def loss(self, method: CoMatch, batch: Batch) -> tuple[torch.Tensor, float, float]:
        assert batch.labelled is not None
        features = method.encoder(torch.cat([batch.labelled.views[0], *batch.views]))
        probabilities, embedded = method.classifier(features).softmax(1), method.projector(features)
        embedded = embedded / embedded.square().sum(1, keepdim=True).sqrt()
        targets, n = batch.labelled.targets.tolist(), len(batch.indices)
        known, weak, strong, _ = probabilities.split([len(targets), n, n, n])
        anchors, memorable, first, second = embedded.split([len(targets), n, n, n])
        loss = -sum(p[y].log() for p, y in zip(known, targets, strict=True)) / len(targets)
        labels, aligned = self.labels(weak.tolist(), memorable.tolist())
        self.remember(memorable.tolist(), aligned)
        self.remember(anchors.tolist(), [[float(y == c) for c in range(3)] for y in targets])
        confident, edges = 0, 0
        for i in range(n):
            if max(labels[i]) >= 0.5:
                loss = loss - 2 * sum(labels[i][c] * strong[i, c].log() for c in range(3)) / n
                confident += 1
            row = [sum(a * b for a, b in zip(labels[i], labels[j], strict=True)) if j != i else 1.0 for j in range(n)]
            row = [w if w >= 0.4 else 0.0 for w in row]
            edges += sum(w > 0 for w in row)
            similar = [((first[i] * second[j]).sum() / 0.2).exp() for j in range(n)]
            for j in range(n):
                loss = loss - 2 * 3 * row[j] / sum(row) * (similar[j] / sum(similar)).log() / n
        return loss, confident / n, edges / n


def test_loss_gradient_and_memory_follow_the_algorithm():
    method, reference = small("comatch", "method.weight=2", "method.contrast=3"), Reference(30, 2)
    assert isinstance(method, CoMatch)
    with torch.no_grad():
        method.classifier.weight.mul_(4)
    batch, parameters = batch_of(method), [*method.encoder.parameters(), *method.classifier.parameters()]
    parameters += method.projector.parameters()
    shares, connected = [], []
    for _ in range(5):  # of 12 images: the memory is full after the third step
        expected, share, edges = reference.loss(method, batch)
        result = method(batch, NOW)
        shares.append(share)
        connected.append(edges)
        assert float(result.metrics["confident"]) == share
        assert float(result.metrics["connected"]) == edges
        torch.testing.assert_close(result.loss, expected)
        gradients = torch.autograd.grad(result.loss, parameters)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))
        with torch.no_grad():
            for p, gradient in zip(parameters, gradients, strict=True):
                p.sub_(0.01 * gradient)
    assert 0 < min(shares) < 1, "some images must count, and some not"
    assert 1 < max(connected) < 8, "some images must be connected, and some not"
    newest = int(method.counts[0]) % 30
    torch.testing.assert_close(
        method.predicted.roll(-newest, 0), torch.tensor([p for _, p in reference.memory]).double()
    )
    torch.testing.assert_close(
        method.embedded.roll(-newest, 0), torch.tensor([z for z, _ in reference.memory]).double()
    )


def test_a_memory_smaller_than_a_batch_keeps_its_newest_images():
    method = small("comatch", "method.memory=3")
    assert isinstance(method, CoMatch)
    rows = torch.arange(8, dtype=torch.float64)
    method._remember(rows[:, None].expand(8, 4), rows[:, None].expand(8, 3))
    assert sorted(method.predicted[:, 0].tolist()) == [5, 6, 7]
    method._remember(rows[:1, None].expand(1, 4), rows[:1, None].expand(1, 3))
    assert sorted(method.predicted[:, 0].tolist()) == [0, 6, 7]


def test_the_alignment_survives_a_class_that_is_never_predicted():
    method = small("comatch").float()
    assert isinstance(method, CoMatch)
    aligned = method._aligned(torch.tensor([[0.0, 1, -1000], [0.0, -1, -1000]]))
    assert aligned.isfinite().all()
    assert aligned.sum(1).tolist() == pytest.approx([1, 1])


def of_part(labels: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    return of_own_part(
        lambda p, z, w: graph_contrast(label_graph(p, 0.4), z, w, 0.2) + 0 * p.sum(), labels, first, second
    )


@pytest.mark.slow
def test_two_workers_share_one_graph():
    generator = torch.Generator().manual_seed(0)
    labels = (2 * torch.randn(8, 3, dtype=torch.float64, generator=generator)).softmax(1)
    first, second = torch.randn(2, 8, 4, dtype=torch.float64, generator=generator).unbind()
    assert_two_are_one(of_part, labels, first, second)

"""Label propagation against dense algebra, scipy's conjugate gradients, and the paper's weights worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg
from torch.nn import functional as F

from eagleray.blocks.distributed import rank, world_size
from eagleray.contracts.batch import EpochView, Progress
from eagleray.runs.processes import two_processes
from eagleray_methods.label_propagation import LabelPropagation, neighbour_graph, propagated, pseudo_labels
from method_cases import batch_of, small

SMALL = ["method.labels_only=0", "method.neighbours=5"]
LATE = Progress(step=8, steps=10, epoch=8, epochs=10)


def blobs(count: int = 500, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points around as many directions as there are classes, and the class of each."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 8, dtype=torch.float64, generator=generator)
    of_each = torch.arange(count) % classes
    noise = 0.7 * torch.randn(count, 8, dtype=torch.float64, generator=generator)
    return (centres[of_each] + noise) * (1 + of_each[:, None]), of_each


def dense_graph(features: torch.Tensor, neighbours: int) -> np.ndarray:
    """Return the paper's S, with loops."""
    v = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True).clip(1e-12)
    count = len(v)
    a = np.zeros((count, count))
    for i in range(count):
        similar = v @ v[i]
        nearest = sorted((j for j in range(count) if j != i), key=lambda j: -similar[j])[:neighbours]
        for j in nearest:
            a[i, j] = max(similar[j], 0) ** 3
    w = a + a.T
    d = w.sum(1)
    s = np.zeros_like(w)
    for i, j in zip(*np.nonzero(w), strict=True):
        s[i, j] = w[i, j] / math.sqrt(d[i] * d[j])
    return s


def starts(places: torch.Tensor, targets: torch.Tensor, count: int, classes: int) -> np.ndarray:
    y = np.zeros((count, classes))
    for place, target in zip(places.tolist(), targets.tolist(), strict=True):
        y[place, target] = 1 / targets.tolist().count(target)
    return y


def test_the_graph_is_the_papers():
    features, _ = blobs()
    graph = neighbour_graph(features, 10, 3.0)
    np.testing.assert_allclose(graph.to_dense().numpy(), dense_graph(features, 10), atol=1e-12)


def test_equal_images_are_neighbours_and_no_image_is_its_own():
    features = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0.1, 1]])
    graph = neighbour_graph(features, 2, 3.0).to_dense()
    assert graph.diagonal().tolist() == [0] * 5
    assert (graph[:3, :3] > 0).sum() == 6


def test_opposite_images_are_not_connected():
    features = torch.tensor([[1.0, 0.1], [1, 0], [-1, 0.1], [-1, 0]])
    graph = neighbour_graph(features, 50, 3.0).to_dense()  # 50: all others
    assert (graph > 0).nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    assert graph.min() == 0


def test_labels_spread_as_the_dense_solution_says():
    features, classes = blobs()
    places = torch.tensor([3, 17, 42, 101, 230, 399])
    graph = neighbour_graph(features, 10, 3.0)
    y = starts(places, classes[places], 500, 4)
    exact = np.linalg.solve(np.eye(500) - 0.99 * dense_graph(features, 10), y)
    found = propagated(graph, places, classes[places], 4, 0.99, 500).numpy()
    np.testing.assert_allclose(found, exact.clip(0), atol=1e-5 * exact.max())
    guessed = propagated(graph, places, classes[places], 4, 0.99, 20).argmax(1)
    assert (guessed.numpy() == exact.argmax(1)).mean() > 0.95  # twenty steps are not the end


def test_twenty_steps_are_those_of_scipy():
    features, classes = blobs()
    places = torch.tensor([3, 17, 42, 101, 230, 399])
    system, y = np.eye(500) - 0.99 * dense_graph(features, 10), starts(places, classes[places], 500, 4)
    expected = np.stack([cg(system, column, rtol=1e-6, atol=0, maxiter=20)[0] for column in y.T], 1).clip(0)
    found = propagated(neighbour_graph(features, 10, 3.0), places, classes[places], 4, 0.99, 20).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_classes_without_labels_and_images_without_neighbours_do_no_harm():
    features, classes = blobs()
    features[7] = 0  # similar to nothing
    places = torch.tensor([3, 7, 42, 102])  # of the classes 3, 3, 2, 2: none of 0 and 1
    graph = neighbour_graph(features, 10, 3.0)
    assert graph.to_dense()[7].abs().sum() == 0
    scores = propagated(graph, places, classes[places], 4, 0.99, 20)
    assert scores.isfinite().all()
    assert scores[:, :2].abs().sum() == 0
    assert scores[7].tolist() == pytest.approx([0, 0, 0, 0.5], rel=1e-4)
    labels, certainty, balance = pseudo_labels(scores, places, classes[places])
    assert all(each.isfinite().all() for each in (certainty, balance))
    assert set(labels.tolist()) == {2, 3}
    places = torch.tensor([3, 42, 102])
    scores = propagated(graph, places, classes[places], 4, 0.99, 20)
    labels, certainty, balance = pseudo_labels(scores, places, classes[places])
    assert certainty[7] == 0  # no label reaches it
    assert (balance[2:] * torch.tensor([(labels == 2).sum(), (labels == 3).sum()])).tolist() == [499 / 4] * 2


def test_weights_are_the_papers():
    scores = torch.tensor([[0.2, 0.2, 0], [0, 0, 0], [0.3, 0.1, 0], [0, 0, 0.4], [0.1, 0.1, 0.1]], dtype=torch.float64)
    labels, certainty, balance = pseudo_labels(scores, torch.tensor([2]), torch.tensor([1]))
    assert labels[[0, 2, 3]].tolist() == [0, 1, 2]
    assert certainty.tolist() == pytest.approx([1 - math.log(2) / math.log(3), 0, 1, 1, 0])
    assert balance.tolist() == pytest.approx([4 / 3 / 2, 4 / 3, 4 / 3])  # two, one and one of four images
    _, certainty, _ = pseudo_labels(scores[[0, 4]], torch.tensor([1]), torch.tensor([0]))
    assert certainty.tolist() == pytest.approx([1, 1])  # divided by the largest; the second image is labelled


def prepared(*more: str) -> LabelPropagation:
    method = small("label_propagation", *more)
    assert isinstance(method, LabelPropagation)
    images = torch.randn(100, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labelled = torch.tensor([0, 5, 95, 99]), torch.tensor([0, 1, 1, 2])
    method.eval()
    method.before_epoch(EpochView(lambda: method.encode(images), labelled, LATE))
    return method.train()


def test_loss_and_gradient_are_the_papers():
    method = prepared("method.weight=2")
    batch = batch_of(method)
    assert batch.labelled is not None
    probabilities = method.classifier(method.encoder(torch.cat([batch.labelled.views[0], batch.views[0]]))).softmax(1)
    labelled, others = probabilities[:4], probabilities[4:]
    expected = -sum(p[y].log() for p, y in zip(labelled, batch.labelled.targets, strict=True)) / 4
    sizes = method.labels.bincount(minlength=3).tolist()
    for place, p in zip(batch.indices.tolist(), others, strict=True):
        label = int(method.labels[place])
        expected = expected - 2 * method.certainty[place] * (100 / 3 / sizes[label]) * p[label].log() / 8
    loss = method(batch, LATE).loss
    torch.testing.assert_close(loss, expected)
    parameters = [*method.encoder.parameters(), *method.classifier.parameters()]
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters))
    assert method.labels[[0, 5]].tolist() == [0, 1]
    assert method.certainty[[0, 5]].tolist() == [1, 1]
    assert 0 < method.certainty.min() < 0.9


def test_labels_spread_after_the_epochs_with_labels_alone():
    method = small("label_propagation", "method.labels_only=0.5")
    batch = batch_of(method)
    assert batch.labelled is not None

    def refuse() -> torch.Tensor:
        raise AssertionError("the features are not needed yet")

    early = Progress(step=4, steps=10, epoch=4, epochs=10)
    method.before_epoch(EpochView(refuse, (torch.tensor([0]), torch.tensor([0])), early))
    logits = method.classifier(method.encoder(torch.cat([batch.labelled.views[0], batch.views[0]])))
    torch.testing.assert_close(method(batch, early).loss, F.cross_entropy(logits[:4], batch.labelled.targets))
    with pytest.raises(AssertionError, match="not needed"):
        method.before_epoch(EpochView(refuse, (torch.tensor([0]), torch.tensor([0])), LATE))


def spread_by_workers() -> list[torch.Tensor]:
    """Spread labels, each worker over features of its own."""
    method = small("label_propagation")
    assert isinstance(method, LabelPropagation)
    features = torch.randn(100, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(rank()))
    labelled = torch.tensor([0, 5, 95, 99]), torch.tensor([0, 1, 1, 2])
    method.before_epoch(EpochView(lambda: features, labelled, LATE))
    return [torch.tensor(world_size()), method.labels, method.certainty, method.balance]


@pytest.mark.slow
def test_workers_agree_even_where_their_features_do_not():
    alone = spread_by_workers()[1:]
    for workers, *found in two_processes(spread_by_workers):
        assert workers == 2
        torch.testing.assert_close(found, alone)

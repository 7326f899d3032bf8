"""DeepCluster against scikit-learn's k-means and PCA, and against sampling evenly over clusters."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray.blocks import distributed
from eagleray.blocks.kmeans import kmeans, nearest, split_empty
from eagleray.contracts.batch import Batch, EpochView, Progress
from eagleray.contracts.errors import ConfigError
from eagleray.runs.processes import two_processes
from eagleray_methods.deepcluster import DeepCluster, evening, whiten
from method_cases import INFO, NOW, small

SMALL = ["method.clusters=5", "method.components=4"]


def blobs(count: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Points around seven places, on axes of unlike length."""
    draw = torch.Generator().manual_seed(0)
    places = torch.randn(7, width, dtype=dtype, generator=draw)
    spread = torch.randn(count, width, dtype=dtype, generator=draw) * torch.linspace(0.2, 1.5, width, dtype=dtype)
    return places[torch.arange(count) % 7] + 0.5 * spread


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kmeans_is_scikit_learns():
    from sklearn.cluster import KMeans

    points = blobs(200, 6)
    start = points[torch.randperm(200, generator=generator(3))[:9]]
    theirs = KMeans(9, init=start.numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(points.numpy())
    assert torch.equal(kmeans(points, 9, 300, generator(3)), torch.from_numpy(theirs.labels_).long())


def test_kmeans_gives_the_same_twice_and_other_clusters_to_another_generator():
    points = blobs(300, 4, torch.float32)
    first = kmeans(points, 12, 20, generator(1))
    assert torch.equal(first, kmeans(points, 12, 20, generator(1)))
    assert not torch.equal(first, kmeans(points, 12, 20, generator(2)))


def test_points_find_their_nearest_centroid_block_by_block(monkeypatch: pytest.MonkeyPatch):
    points, centroids = blobs(50, 3), blobs(60, 3)[50:]
    monkeypatch.setattr("eagleray_methods.deepcluster.BLOCK", 30)  # blocks of three points
    assert torch.equal(nearest(points, centroids), torch.cdist(points, centroids).argmin(1))


def test_no_cluster_stays_empty():
    """Two far groups of points, and starts that are one and the same point many times over."""
    points = torch.cat([blobs(40, 3)[:1].repeat(60, 1), blobs(40, 3)])
    found = kmeans(points, 20, 20, generator())
    assert found.bincount(minlength=20).min() > 0


def test_an_empty_cluster_gets_one_side_of_another():
    points = blobs(30, 3)
    before = torch.zeros(30, dtype=torch.long)
    before[:4] = 2  # clusters 1 and 3 are empty
    after = split_empty(points, before.clone(), 4, generator())
    assert after.bincount(minlength=4).min() > 0
    one = split_empty(points, torch.zeros(30, dtype=torch.long), 2, generator())
    sides = points - points.mean(0)
    # A plane through the centre parts the two: the difference of their means points to the second's side.
    assert (sides[one == 1].mean(0) - sides[one == 0].mean(0)).norm() > 0.1
    assert 5 < (one == 1).sum() < 25


def test_points_that_are_all_the_same_end_nothing():
    assert kmeans(torch.zeros(20, 3), 4, 5, generator()).shape == (20,)
    assert whiten(torch.ones(20, 3), 2).abs().max() == 0


def test_whitening_is_scikit_learns_pca():
    from sklearn.decomposition import PCA

    features = blobs(100, 8)
    ours, theirs = whiten(features, 5), torch.from_numpy(PCA(5, whiten=True).fit_transform(features.numpy()))
    # The direction of an axis is arbitrary, inner products are not; theirs divides by n - 1.
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T * 100 / 99)


def test_components_without_variance_show_no_noise():
    features = torch.cat([blobs(50, 3), torch.full((50, 2), 0.3, dtype=torch.float64)], 1)
    white = whiten(features, 5)
    assert white[:, :2].abs().max() == 0
    torch.testing.assert_close(white[:, 2:].square().mean(0), torch.ones(3, dtype=torch.float64))


def test_weights_are_what_even_sampling_over_clusters_expects():
    assignments = torch.tensor([0, 0, 0, 0, 1, 3, 3])  # cluster 2 is empty
    losses = torch.tensor([1.0, 5, 2, 4, 7, 3, 8])
    expected = sum(float(losses[assignments == k].mean()) for k in (0, 1, 3)) / 3
    weights = evening(assignments.bincount(minlength=4).double())[assignments]
    assert float((weights * losses).mean()) == pytest.approx(expected)
    assert float(weights.mean()) == pytest.approx(1)


def prepared(*settings: str) -> DeepCluster:
    """After the clustering of an epoch, on features that a second worker sees a little otherwise."""
    method = small("deepcluster", *settings).train()
    assert isinstance(method, DeepCluster)
    features = blobs(INFO.samples, method.encoder.dim)
    features += 0.3 * distributed.rank() * torch.randn(features.shape, generator=generator(), dtype=torch.float64)
    method.before_epoch(EpochView(lambda: features, None, Progress(step=20, steps=40, epoch=2, epochs=4)))
    return method


def after_an_epochs_clustering() -> dict[str, Tensor]:
    # So many clusters that some are left empty, by one worker more often than by the other.
    return dict(prepared("method.clusters=40").state_dict())


@pytest.mark.slow
def test_all_workers_cluster_as_one():
    alone = after_an_epochs_clustering()
    for state in two_processes(after_an_epochs_clustering):
        for key, value in alone.items():
            assert torch.equal(state[key], value), key


def test_an_epoch_begins_with_new_clusters_and_a_new_classifier():
    fresh, method = small("deepcluster"), prepared()
    assert isinstance(fresh, DeepCluster)
    features = blobs(INFO.samples, method.encoder.dim)
    found = kmeans(F.normalize(whiten(features, 4), dim=1), 5, 20, method.rng(2))
    assert torch.equal(method.assignments, found)
    assert torch.equal(method.sizes, found.bincount(minlength=5))
    assert not torch.equal(method.assignments, fresh.assignments)
    assert not torch.equal(method.classifier.weight, fresh.classifier.weight)
    assert float(method.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    assert method.classifier.bias.abs().max() == 0
    before = method.classifier.weight.clone()
    method.before_epoch(EpochView(lambda: features, None, Progress(step=30, steps=40, epoch=3, epochs=4)))
    assert not torch.equal(method.classifier.weight, before)


def test_clusters_are_kept_until_their_epochs_are_over():
    method = small("deepcluster", "method.every=2").train()
    assert isinstance(method, DeepCluster)
    found = []
    for epoch in range(4):
        features = blobs(INFO.samples, method.encoder.dim) + torch.randn(method.encoder.dim, generator=generator(epoch))
        features[epoch::7] *= 2
        progress = Progress(step=epoch * 10, steps=40, epoch=epoch, epochs=4)
        method.before_epoch(EpochView(lambda f=features: f, None, progress))
        found.append((method.assignments.clone(), method.classifier.weight.detach().clone()))
    for (before, old), (after, new), is_kept in zip(found, found[1:], (True, False, True), strict=False):
        assert torch.equal(before, after) == is_kept
        assert torch.equal(old, new) == is_kept


def test_the_loss_of_all_images_is_that_of_even_sampling_over_clusters():
    method = prepared().eval()
    images = torch.randn(INFO.samples, 3, 8, 8, dtype=torch.float64, generator=generator())
    result = method(Batch([images], torch.arange(INFO.samples)), NOW)
    losses = F.cross_entropy(method.classifier(method.encoder(images)), method.assignments, reduction="none")
    parts = [losses[method.assignments == cluster].mean() for cluster in range(5)]
    torch.testing.assert_close(result.loss, torch.stack(parts).mean())
    assert float(result.metrics["largest"]) == pytest.approx(float(method.sizes.max()) / INFO.samples)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.clusters=101", r"method.clusters=101 is more than the 100 training images: take 10, which gives"),
        ("method.components=390", r"method.components=390 is more than the encoder's 384 features: take 384 or fewer"),
    ],
)
def test_what_cannot_be_clustered_is_refused(setting: str, words: str):
    with pytest.raises(ConfigError, match=words):
        small("deepcluster", setting)

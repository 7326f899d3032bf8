"""K-means features against the floor of the same name and scikit-learn's k-means."""

from dataclasses import replace

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from eagleray.blocks import patch_features
from eagleray.blocks.kmeans import nearest
from eagleray.blocks.patch_codes import layer_of
from eagleray.blocks.patch_features import image_patches
from eagleray.config import load_run
from eagleray.contracts.batch import EpochView
from eagleray.contracts.errors import ConfigError
from eagleray.runs import floors
from eagleray.runs.assemble import assemble, build_method
from eagleray.runs.method_checks import INFO
from eagleray_methods.kmeans_features import quantisation_error
from method_cases import NOW, batch_of, small

SMALL = ["method.patches=3"]


def points(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_before_any_step_the_features_are_the_floors(monkeypatch: pytest.MonkeyPatch):
    """Times a quarter of the patches, which are nine in digits."""
    monkeypatch.setattr(patch_features, "CENTROIDS", 20)
    run = load_run(
        None,
        ["method=kmeans_features", "encoder.width=20", "data.limit=200", "batch_size=50", "threads=1", "device=cpu"],
    )
    built = assemble(run)
    before = EpochView(lambda: torch.zeros(0), None, replace(NOW, step=0), built.evaluation.training_images)
    built.method.before_epoch(before)
    images = torch.cat(list(built.evaluation.training_images(torch.arange(30))))
    expected = floors.KINDS["kmeans"].features(built)(images)
    torch.testing.assert_close(built.method.encode(images) * 9 / 4, expected, rtol=1e-5, atol=1e-5)
    assert expected.any()


def test_the_gradient_is_a_step_of_k_means():
    """Divided by a centroid's share of the points it leads to their mean, as scikit-learn's iteration does."""
    data, start = points(60), points(7, seed=1)
    centroids = start.clone().requires_grad_()
    assigned = nearest(data, start)
    loss = quantisation_error(data, centroids, assigned)
    by_hand = sum(min(float((x - c) @ (x - c)) for c in start) for x in data) / 2 / 60
    assert float(loss.detach()) == pytest.approx(by_hand)
    (gradient,) = torch.autograd.grad(loss, centroids)
    share = assigned.bincount(minlength=7)[:, None] / 60
    assert (share > 0).all()
    theirs = KMeans(7, init=start.numpy(), n_init=1, max_iter=1, algorithm="lloyd", tol=0)
    theirs.fit(data.numpy())
    torch.testing.assert_close(start - gradient / share, torch.from_numpy(theirs.cluster_centers_))


def test_steps_lower_the_error_and_say_which_centroids_are_used():
    method = small("kmeans_features", "method.patches=9")
    batch, layer = batch_of(method), layer_of(method.encoder)
    first = method(batch, NOW)
    with torch.no_grad():
        layer.dictionary[0] = 1e3
    result = method(batch, NOW)
    x = layer.draw(batch.views[0], 9, method.rng(NOW.step)).flatten(0, 1)
    assert float(result.metrics["used"]) == len(nearest(x, layer.dictionary.detach()).unique()) / 8 <= 7 / 8
    assert float(result.metrics["unexplained"]) == pytest.approx(
        2 * float(result.loss.detach()) / float((x**2).sum(1).mean())
    )
    assert result.embeddings[0].shape == (8, 8)
    with torch.no_grad():
        layer.dictionary[0] = 0
    (gradient,) = torch.autograd.grad(method(batch, NOW).loss, layer.dictionary)
    with torch.no_grad():
        layer.dictionary -= gradient
    assert method(batch, NOW).loss < first.loss


def test_k_means_is_fitted_once():
    method = small("kmeans_features")
    layer, images = layer_of(method.encoder), torch.randn(method.data.samples, 3, 8, 8, dtype=torch.float64)
    for step in (0, 5):
        scale = 1 + step
        method.before_epoch(
            EpochView(lambda: images, None, replace(NOW, step=step), lambda p, s=scale: (images[p] * s).split(9))
        )
        if step == 0:
            fitted = {name: value.clone() for name, value in layer.state_dict().items()}
            assert not torch.equal(layer.whitening, torch.eye(108, dtype=torch.float64))
    assert all(torch.equal(value, fitted[name]) for name, value in layer.state_dict().items())


def test_a_picture_shows_the_centroids_as_patches_and_images_made_of_them():
    method = small("kmeans_features")
    layer, shown = layer_of(method.encoder), batch_of(method).views[0]
    with torch.no_grad():
        layer.mean.copy_(torch.linspace(-1, 1, 108))
        layer.whitening.mul_(2)
        # The centroids are patches of the images, brightest corner first in channel and row.
        patches = image_patches(layer.pixels(shown), 6)  # [8, 9, 108]
        layer.dictionary.copy_(layer.whitened(patches[:, 4]))
    made = method.picture(shown)
    torch.testing.assert_close(made["centroids"], patches[:, 4].reshape(8, 3, 6, 6))
    with torch.no_grad():  # so that each patch of the first image is a centroid
        layer.dictionary.copy_(layer.whitened(patches[0, :8]))
        layer.dictionary[0] = layer.whitened(patches[0, 8])
    rebuilt = method.picture(shown)["reconstructed"]
    assert rebuilt.shape == shown.shape
    torch.testing.assert_close(rebuilt[0, :, 7], shown[0, :, 7])
    assert not torch.allclose(rebuilt[1], shown[1])


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match=r"^encoder\.width=901 is more than the 900 patches .*: take 18"):
        build_method(load_run(None, ["method=kmeans_features", "encoder.width=901"]), INFO)
    with pytest.raises(ConfigError, match=r"encoder=convnet: kmeans_features trains triangle_codes alone"):
        load_run(None, ["method=kmeans_features", "encoder=convnet"])
    assert load_run(None, ["method=sparse_coding"]).encoder.name == "shrinkage_codes"

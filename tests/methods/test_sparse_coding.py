"""Sparse coding against scikit-learn's lasso and dictionary learning, and its formula as printed."""

from dataclasses import replace

import pytest
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning, SparseCoder
from torch import Tensor
from torch.nn import functional as F

from eagleray.blocks.patch_codes import layer_of, shrink
from eagleray.blocks.patch_features import whiten
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, EpochView
from eagleray.runs.assemble import build_method
from eagleray_methods.sparse_coding import SparseCoding, best_codes, curvature, energy
from method_cases import INFO, NOW, batch_of, small

SMALL = ["method.patches=3"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(*more: str) -> SparseCoding:
    method = small("sparse_coding", *more)
    assert isinstance(method, SparseCoding)
    return method


def slow_energy(x: Tensor, dictionary: Tensor, f: Tensor, z: Tensor, sparsity: float, prediction: float) -> Tensor:
    """Patch by patch, entry by entry."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(x)):
        for place in range(x.shape[1]):
            total = total + (x[row, place] - sum(dictionary[place, k] * z[row, k] for k in range(z.shape[1]))) ** 2 / 2
        for k in range(z.shape[1]):
            total = total + sparsity * z[row, k].abs() + prediction * (z[row, k] - f[row, k]) ** 2
    return total / len(x)


def least_energy(x: Tensor, dictionary: Tensor, f: Tensor, sparsity: float, prediction: float) -> Tensor:
    """Scikit-learn's lasso; the prediction is a target more for each code."""
    weight = (2 * prediction) ** 0.5
    columns = torch.cat([dictionary, weight * torch.eye(dictionary.shape[1], dtype=torch.float64)])
    targets = torch.cat([x, weight * f], 1)
    coder = SparseCoder(columns.T.numpy(), transform_algorithm="lasso_cd", transform_alpha=sparsity)
    z = torch.from_numpy(coder.transform(targets.numpy()))
    return energy(x, dictionary, f, z, sparsity, prediction)


@pytest.mark.parametrize(("sparsity", "prediction"), [(0.5, 0.0), (1.0, 0.0), (0.5, 1.0), (1.0, 0.2)])
def test_codes_reach_the_energy_of_scikit_learns_lasso(sparsity: float, prediction: float):
    dictionary = F.normalize(drawn(20, 50), dim=0)
    x, f = drawn(30, 20, seed=1), shrink(drawn(30, 50, seed=2), 1.0)
    expected = least_energy(x, dictionary, f, sparsity, prediction)
    z = best_codes(x, dictionary, f, sparsity, prediction, 3000)
    torch.testing.assert_close(energy(x, dictionary, f, z, sparsity, prediction), expected, rtol=1e-5, atol=0)
    few = energy(x, dictionary, f, best_codes(x, dictionary, f, sparsity, prediction, 5), sparsity, prediction)
    many = energy(x, dictionary, f, best_codes(x, dictionary, f, sparsity, prediction, 20), sparsity, prediction)
    assert (energy(x, dictionary, f, f, sparsity, prediction) >= few).all()
    assert (few >= many - 1e-12).all()
    assert (many >= expected - 1e-3).all()


def test_the_default_search_is_within_a_hundredth_of_the_least_energy():
    config = SparseCoding.Config()
    dictionary, x = F.normalize(drawn(36, 100), dim=0), drawn(40, 36, seed=1)
    f = torch.zeros(40, 100, dtype=torch.float64)
    weights = config.sparsity, config.prediction
    found = energy(x, dictionary, f, best_codes(x, dictionary, f, *weights, config.iterations), *weights)
    assert found.mean() < 1.01 * least_energy(x, dictionary, f, *weights).mean()


def test_loss_and_gradients_are_those_of_the_energy_with_the_codes_held():
    method = made("method.sparsity=0.3", "method.prediction=0.7", "method.iterations=2", "encoder.width=6")
    batch, layer = batch_of(method), layer_of(method.encoder)
    dictionary = method.decoder.weight.detach().clone().requires_grad_()
    filters = layer.dictionary.detach().clone().requires_grad_()
    assert layer.threshold is not None
    thresholds = layer.threshold.detach().clone().requires_grad_()
    x = layer.draw(batch.views[0], 3, method.rng(NOW.step)).flatten(0, 1)
    products = x @ filters.T
    f = products.sign() * (products.abs() - thresholds).clamp(min=0)
    z = best_codes(x, dictionary.detach(), f.detach(), 0.3, 0.7, 2)
    expected = slow_energy(x, dictionary, f, z, 0.3, 0.7)
    expected.backward()
    result = method(batch, NOW)
    result.loss.backward()
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=0)
    counts = [sum(float(code) != 0 for code in row) for row in z]
    rest, wrong = x - z @ dictionary.detach().T, f.detach() - z
    own = {
        "active": sum(counts) / z.numel(),
        "used": sum(bool(z[:, entry].any()) for entry in range(z.shape[1])) / z.shape[1],
        "unexplained": float((rest.norm() / x.norm()) ** 2),
        "mispredicted": float((wrong.norm() / z.norm()) ** 2),
    }
    assert 0 < own["active"] < own["used"]
    assert {name: float(value) for name, value in result.metrics.items()} == pytest.approx(own)
    found = (method.decoder.weight.grad, layer.dictionary.grad, layer.threshold.grad)
    for ours, theirs in zip(found, (dictionary.grad, filters.grad, thresholds.grad), strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_predictor_starts_as_a_step_of_the_search_from_zero():
    method = made("method.sparsity=0.1", "encoder.width=30")
    x, dictionary = drawn(10, 108), method.decoder.weight.detach()
    torch.testing.assert_close(dictionary.norm(dim=0), torch.ones(30, dtype=torch.float64))
    zero = torch.zeros(10, 30, dtype=torch.float64)
    f = layer_of(method.encoder).codes(x)
    torch.testing.assert_close(f, best_codes(x, dictionary, zero, 0.1, 0.0, 1), rtol=1e-4, atol=1e-6)
    assert (f != 0).any()


def test_columns_keep_length_one_and_thresholds_their_sign():
    method = made()
    layer = layer_of(method.encoder)
    with torch.no_grad():
        method.decoder.weight.mul_(3)
        assert layer.threshold is not None
        layer.threshold[0] = -1
    method.after_step(NOW)
    torch.testing.assert_close(method.decoder.weight.norm(dim=0), torch.ones(8, dtype=torch.float64))
    assert layer.threshold[0] == 0
    torch.testing.assert_close(curvature(drawn(5, 9)), torch.linalg.eigvalsh(drawn(5, 9) @ drawn(5, 9).T)[-1])


def test_patches_of_the_training_images_are_whitened_once():
    method = made()
    images = drawn(method.data.samples, 3, 8, 8)

    def view(step: int, images: Tensor) -> EpochView:
        return EpochView(lambda: images, None, replace(NOW, step=step), lambda places: images[places].split(7))

    layer = layer_of(method.encoder)
    method.before_epoch(view(0, images))
    patches = layer.sample(lambda places: [images[places]], len(images), method.data.seed)
    assert len(patches) == 9 * len(images)
    mean, whitening = whiten(patches)
    torch.testing.assert_close(layer.mean, mean)
    torch.testing.assert_close(layer.whitening, whitening)
    method.before_epoch(view(5, 2 * images))
    torch.testing.assert_close(layer.whitening, whitening)


def test_a_picture_shows_the_dictionary_without_whitening_and_images_made_of_it():
    method = made("encoder.width=108")
    layer, shown = layer_of(method.encoder), batch_of(method).views[0]
    assert layer.threshold is not None
    with torch.no_grad():
        layer.mean.copy_(drawn(108))
        layer.whitening.copy_(torch.diag(torch.linspace(1, 2, 108)))
        layer.threshold.zero_()
        for weight in (layer.dictionary, method.decoder.weight):
            weight.copy_(torch.eye(108))
    found = method.picture(shown)
    torch.testing.assert_close(found["reconstructed"], shown)  # codes that leave nothing out
    assert torch.equal(found["dictionary"].flatten(1), 2 * torch.eye(108, dtype=torch.float64))
    with torch.no_grad():
        layer.threshold.fill_(1e6)
    torch.testing.assert_close(method.picture(shown)["reconstructed"], layer.rebuilt(shown, torch.zeros_like))


@pytest.mark.slow
def test_the_dictionary_is_as_good_as_scikit_learns():
    """Energy of patches it has not seen, without the term of the predictor; images have a few hidden causes."""
    run = load_run(None, ["method=sparse_coding", "encoder.width=16", "method.patches=4", "method.sparsity=0.3"])
    method = build_method(run, replace(INFO, image_size=5, channels=1, mean=(0.5,), std=(0.25,))).double()
    causes = drawn(16, 25) ** 3
    images = (drawn(400, 16, seed=1) ** 3 * (drawn(400, 16, seed=2) > 1)) @ causes
    images = F.normalize(images, dim=1).view(-1, 1, 5, 5)
    method.before_epoch(EpochView(lambda: images, None, replace(NOW, step=0), lambda places: [images[places]]))
    layer, start = layer_of(method.encoder), method.decoder.weight.detach().clone()
    optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        method(Batch([images[:160]], torch.arange(160)), replace(NOW, step=step)).loss.backward()
        optimizer.step()
        method.after_step(NOW)
    seen, other = (layer.draw(part, 4, method.rng(0)).flatten(0, 1) for part in (images[:160], images[160:]))
    theirs = MiniBatchDictionaryLearning(16, alpha=0.3, batch_size=64, max_iter=10, random_state=0)
    theirs.fit(seen.numpy())
    none = torch.zeros(len(other), 16, dtype=torch.float64)
    first, ours, reference = (
        energy(other, each, none, best_codes(other, each, none, 0.3, 0.0, 300), 0.3, 0.0).mean()
        for each in (start, method.decoder.weight.detach(), torch.from_numpy(theirs.components_.T))
    )
    assert ours < 0.65 * first
    assert ours < reference

"""W-MSE against lightly, and against what whitening is."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from eagleray.contracts.errors import ConfigError
from eagleray_methods.w_mse import w_mse, whiten
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.projection=2", "method.sub_batch=4", "method.iterations=2"]


def embeddings(views: int, images: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    shared = torch.randn(images, width, dtype=dtype, generator=draw)
    mixing = torch.randn(width, width, dtype=dtype, generator=draw)
    noise = torch.randn(views, images, width, dtype=dtype, generator=draw)
    return (shared + 0.5 * noise) @ mixing + 2


@pytest.mark.parametrize(("views", "size", "iterations", "shrinkage"), [(2, 24, 1, 0.0), (3, 8, 3, 0.01)])
def test_the_loss_and_its_gradient_are_lightlys(views: int, size: int, iterations: int, shrinkage: float):
    from lightly.loss.wmse_loss import WMSELoss

    shuffle = torch.Generator().manual_seed(0)
    orders = [torch.randperm(24, generator=shuffle) for _ in range(iterations)]
    theirs = WMSELoss(
        embedding_dim=4,
        eps=shrinkage,
        track_running_stats=False,
        w_iter=iterations,
        w_size=size,
        num_samples=views,
    )
    results = []
    for loss_of in (lambda x: w_mse(x, torch.cat(orders).view(-1, size), shrinkage), lambda x: theirs(x.flatten(0, 1))):
        leaf = embeddings(views, 24, 4, torch.float32).requires_grad_()
        with patch("torch.randperm", side_effect=list(orders)):
            loss = loss_of(leaf)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaf)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_whitened_batches_have_mean_zero_and_identity_covariance():
    white = whiten(embeddings(3, 30, 5), 0.0)
    torch.testing.assert_close(white.mean(1), torch.zeros(3, 5, dtype=torch.float64), rtol=0, atol=1e-10)
    for view in white:
        torch.testing.assert_close(view.T.cov(), torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-10)


def test_the_loss_minds_no_shift_no_scale_of_axes_and_no_order_of_images():
    x, order = embeddings(2, 12, 3), torch.arange(12).view(2, 6)
    loss = w_mse(x, order, 0.0)
    lower = torch.tensor([[2.0, 0, 0], [-1, 0.5, 0], [3, 1, 4]], dtype=torch.float64)
    for same in (x + 5, x * torch.tensor([1.0, 7, 0.1]), x @ lower.T, x.flip(0)):
        torch.testing.assert_close(w_mse(same, order, 0.0), loss)
    torch.testing.assert_close(w_mse(x, order.flip(0)[:, [3, 1, 0, 2, 5, 4]], 0.0), loss)
    assert w_mse(x, torch.arange(12).view(6, 2).T, 0.0) != loss  # and it does mind who is whitened with whom


def test_views_that_agree_cost_nothing_and_views_of_strangers_two():
    x, order = embeddings(1, 400, 3), torch.arange(400).view(1, -1)
    assert float(w_mse(torch.cat([x, x]), order, 0.0)) == pytest.approx(0, abs=1e-9)
    assert float(w_mse(torch.cat([x, x.roll(1, 1)]), order, 0.0)) == pytest.approx(2, abs=0.3)


def test_the_loss_is_float32_inside_bf16_autocast():
    x, order = embeddings(2, 16, 4).bfloat16(), torch.arange(16).view(1, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = w_mse(x, order, 0.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, w_mse(x.float(), order, 0.0))


def test_a_dead_axis_does_not_end_a_run_with_shrinkage():
    x = embeddings(2, 16, 4, torch.float32)
    x[..., 2] = 0
    assert w_mse(x, torch.arange(16).view(1, -1), 1e-3).isfinite()


def test_every_step_divides_the_batch_again():
    method = small("w_mse", "method.sub_batch=4", "method.iterations=1").train()
    batch = batch_of(method)
    loss, again, other = (float(method(batch, replace(NOW, step=step)).loss.detach()) for step in (3, 3, 4))
    assert loss == again != other


def test_four_views_are_compared_in_six_pairs():
    method = small("w_mse", "method.views=4", "method.sub_batch=8", "method.iterations=1").train()
    batch = batch_of(method)
    result = method(batch, NOW)
    assert len(result.embeddings) == 4
    everyone = torch.arange(8).view(1, 8)
    pairs = [
        w_mse(torch.stack([result.embeddings[i], result.embeddings[j]]), everyone, 1e-3)
        for i in range(4)
        for j in range(i)
    ]
    assert len(pairs) == 6
    torch.testing.assert_close(result.loss.detach(), sum(pairs) / 6)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.sub_batch=3", r"method.sub_batch=3 does not divide batch_size=8: .* batch_size=9"),
        ("method.sub_batch=16", r"method.sub_batch=16 does not divide batch_size=8: .* batch_size=16"),
        ("method.projection=4", r"method.projection=4 is too wide .* method.sub_batch=4 images: take 2 or less"),
    ],
)
def test_sub_batches_that_cannot_be_whitened_are_refused(setting: str, words: str):
    with pytest.raises(ConfigError, match=words):
        small("w_mse", setting)


@pytest.mark.parametrize("broken", ["a direction without variance", "NaN"])
def test_what_cannot_be_whitened_is_nan_which_ends_a_run_in_a_sentence(broken: str):
    z = embeddings(2, 8, 2)
    z[0, :, 1] = 0.0 if broken != "NaN" else float("nan")
    z.requires_grad_()
    loss = w_mse(z, torch.arange(8).view(2, 4), 0.0)
    loss.backward()
    assert loss.isnan()

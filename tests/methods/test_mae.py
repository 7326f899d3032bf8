"""MAE: what the encoder sees, and what it is judged on."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray.contracts.batch import Batch
from eagleray_methods.mae import patchify, take
from method_cases import NOW, batch_of, small


def test_mae_patches_put_together_are_the_image():
    images = torch.randn(2, 3, 8, 8)
    patches = patchify(images, 2)
    assert patches.shape == (2, 16, 12)
    folded = F.fold(patches.transpose(1, 2), output_size=8, kernel_size=2, stride=2)
    torch.testing.assert_close(folded, images)


def test_mae_is_judged_on_hidden_patches_alone_and_never_shows_them_to_the_encoder():
    method = small("mae").train()
    images = batch_of(method).views[0]
    places = method.encoder.grid**2
    order = torch.stack([torch.randperm(places) for _ in images])
    target = patchify(images, method.encoder.patch_size)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    perfect = (target - mean) / (variance + 1e-6).sqrt()
    assert float(method._loss(perfect, target, order)) < 1e-12
    wrong = perfect.clone()
    wrong[torch.arange(len(images))[:, None], order[:, : method.kept]] += 100  # wrong where it was seen
    assert float(method._loss(wrong, target, order)) < 1e-12
    wrong[torch.arange(len(images))[:, None], order[:, method.kept :]] += 2
    assert float(method._loss(wrong, target, order)) == pytest.approx(4)

    with patch("torch.rand", lambda *a, **k: order.argsort(1).double()):
        painted: list[Tensor] = []
        method.decoder.register_forward_hook(lambda _m, _i, output: painted.append(output))
        method(Batch([images], torch.arange(8)), NOW)
        hidden = torch.zeros(8, places, 1, dtype=torch.bool).scatter_(1, order[:, method.kept :, None], value=True)
        changed = torch.where(hidden, torch.randn_like(target), target)
        other = F.fold(
            changed.transpose(1, 2),
            8,
            kernel_size=method.encoder.patch_size,
            stride=method.encoder.patch_size,
        )
        method(Batch([other], torch.arange(8)), NOW)
    torch.testing.assert_close(painted[0], painted[1])


def test_mae_takes_tokens_by_their_place():
    tokens = torch.arange(24.0).view(2, 4, 3)
    taken = take(tokens, torch.tensor([[3, 0], [1, 1]]))
    torch.testing.assert_close(taken, torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]]))

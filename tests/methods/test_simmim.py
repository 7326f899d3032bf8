"""SimMIM against its authors' loss pixel by pixel, its squares, its picture, and what cannot work."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.augment import View
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.simmim import SimMIM, absolute_error, patches_of
from method_cases import INFO, NOW, batch_of, small


def made(info: DataInfo = INFO, *more: str) -> SimMIM:
    settings = ["method=simmim", "encoder.depth=2", "encoder.dim=32", *more]
    method = build_method(load_run(None, settings), info).double().train()
    assert isinstance(method, SimMIM)
    return method


def authors_loss(method: SimMIM, images: Tensor) -> Tensor:
    """models/simmim.py of microsoft/SimMIM: x * (1 - w) + token * w, pixel shuffle, |x - x_rec| * mask, division."""
    vit: Any = method.encoder.vit
    size, grid, unit = method.encoder.patch_size, method.encoder.grid, method.unit
    squares = grid // unit
    noise = torch.rand(len(images), squares**2, generator=method.rng(NOW.step))
    count = int(np.ceil(squares**2 * method.config.mask_ratio))
    mask = torch.zeros(len(images), grid, grid, dtype=torch.float64)
    for n, row in enumerate(noise.tolist()):
        for square in sorted(range(squares**2), key=row.__getitem__)[:count]:
            top, left = unit * (square // squares), unit * (square % squares)
            mask[n, top : top + unit, left : left + unit] = 1
    w = mask.flatten(1).unsqueeze(-1)
    x = vit.patch_embed(images) * (1 - w) + method.mask_token * w
    x = torch.cat([vit.cls_token.expand(len(images), -1, -1), x], 1) + vit.pos_embed
    for block in vit.blocks:
        x = block(x)
    z = method.head(vit.norm(x)[:, 1:])  # [N, L, size * size * C]
    channels = images.shape[1]
    painted = torch.zeros_like(images)
    for place in range(grid**2):
        top, left = size * (place // grid), size * (place % grid)
        pixels = z[:, place].reshape(-1, size, size, channels).permute(0, 3, 1, 2)
        painted[:, :, top : top + size, left : left + size] = pixels
    pixel_mask = mask.repeat_interleave(size, 1).repeat_interleave(size, 2).unsqueeze(1)
    return ((images - painted).abs() * pixel_mask).sum() / pixel_mask.sum() / channels


@pytest.mark.parametrize(
    ("size", "channels", "settings"),
    [
        (8, 3, ["method.mask_unit=2"]),
        (12, 1, ["encoder.patch_size=3", "method.mask_ratio=0.4"]),
        (10, 3, ["encoder.patch_size=2"]),
    ],
)
def test_the_step_is_the_authors_loss(size: int, channels: int, settings: list[str]):
    info = DataInfo(size, channels, samples=100, classes=None, batch_size=5, seed=4)
    method = made(info, *settings)
    images = torch.randn(5, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    expected, loss = authors_loss(method, images), method(Batch([images], torch.arange(5)), NOW).loss
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)


def test_reconstruction_of_images_of_one_colour_is_that_colour_squared():
    method = made()
    with torch.no_grad():
        for parameter in method.head.parameters():
            parameter.zero_()  # predicts 0
    images = torch.full((4, 3, 8, 8), 3.0, dtype=torch.float64)
    result = method(Batch([images], torch.arange(4)), NOW)
    assert (result.loss.item(), result.metrics["reconstruction"].item()) == pytest.approx((3, 9))


def test_squares_of_two_patches_hide_three_fifths_of_the_paper_and_of_small_images():
    """32 of 224 pixels, and 8 of 32: 49 squares, of which 30, and 16, of which 10."""
    for size, patch, squares, hidden in [(224, 16, 49, 30), (32, 4, 16, 10)]:
        info = replace(INFO, image_size=size)
        method = made(info, f"encoder.patch_size={patch}", "encoder.depth=1", "method.mask_unit=null")
        assert (method.unit * patch, method.units, method.hidden) == (size // squares**0.5, squares, hidden)
        places = method._places(0, 3)
        assert places.shape == (3, 4 * hidden)
        assert all(len(row.unique()) == 4 * hidden for row in places)


def test_squares_cover_their_patches():
    places = patches_of(torch.tensor([[0, 3]]), grid=4, unit=2)
    assert sorted(places[0].tolist()) == [0, 1, 4, 5, 10, 11, 14, 15]
    assert patches_of(torch.tensor([[7, 1]]), grid=3, unit=1).tolist() == [[7, 1]]


def test_an_odd_number_of_patches_is_hidden_patch_by_patch():
    assert made(replace(INFO, image_size=28), "encoder.patch_size=4", "method.mask_unit=null").unit == 1


def test_views_are_the_authors():
    assert small("simmim").views == (View(crop=(0.67, 1.0), flip=0.5),)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method.mask_unit=3"], r"^method\.mask_unit=3 does not divide the 4 patches along a side: take 1, 2$"),
        (["encoder.patch_size=8"], r"^method\.mask_ratio=0\.6 hides all of 1 squares: .* encoder\.patch_size$"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        made(INFO, *settings)


def test_the_error_is_float32_inside_bf16_autocast():
    target = torch.linspace(-1, 1, 12).reshape(1, 2, 6)
    predicted = (target * 0.7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = absolute_error(predicted, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (predicted.float() - target).abs().mean())


def test_a_picture_is_what_the_loss_sees():
    method = small("simmim")
    images = batch_of(method).views[0]
    made = method.picture(images)
    away = made["seen"] == 0
    assert (away.sum((1, 2, 3)) == method.hidden * images[0].numel() / method.units).all()  # type: ignore[operator]
    for shown in made.values():
        assert torch.equal(shown[~away], images[~away])
    wanted = (made["reconstructed"] - images)[away].abs().mean()
    torch.testing.assert_close(method(batch_of(method), replace(NOW, step=0)).loss, wanted)

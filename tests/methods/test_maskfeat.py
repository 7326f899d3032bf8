"""MaskFeat against its loss written out patch by patch, its weight decay, and what cannot work."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from eagleray.augment import View
from eagleray.blocks.hidden_patches import draw_blocks, encode_rest
from eagleray.blocks.hog import histograms, lines
from eagleray.blocks.masking import patchify, unpatchify
from eagleray.blocks.optimizers import make_optimizer
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.recipe import Recipe
from eagleray.runs.assemble import build_method
from eagleray_methods.maskfeat import MaskFeat, squared_error
from method_cases import BATCH, INFO, NOW, batch_of, small


def made(info: DataInfo = INFO, *more: str) -> MaskFeat:
    settings = ["method=maskfeat", "encoder.depth=1", "encoder.dim=32", *more]
    method = build_method(load_run(None, settings), info).double().train()
    assert isinstance(method, MaskFeat)
    return method


def slow_loss(method: MaskFeat, images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of |W token - HOG|^2 over hidden patches and bins, and the cosine, patch by patch."""
    encoder, size, cell = method.encoder, method.encoder.patch_size, method.cell
    places = draw_blocks(len(images), encoder.grid, method.hidden, method.rng(NOW.step))
    errors, cosines = [], []
    for n, hidden in enumerate(places.tolist()):
        mask = torch.zeros(1, encoder.grid**2, dtype=torch.bool)
        mask[0, hidden] = True
        tokens = encoder.tokens(encoder.patches(images[n : n + 1], mask, method.mask_token[0]))[0, 1:]
        cells = histograms(images[n : n + 1], cell, window=method.config.window)[0]  # [C * 9, cells, cells]
        for place in hidden:
            top, left, side = (
                size // cell * (place // encoder.grid),
                size // cell * (place % encoder.grid),
                size // cell,
            )
            target = torch.cat([cells[:, top + y, left + x] for y in range(side) for x in range(side)])
            predicted = method.head.weight @ tokens[place] + method.head.bias
            errors.append(sum((p - t) ** 2 for p, t in zip(predicted, target, strict=True)) / len(target))
            cosines.append(predicted @ target / predicted.norm() / target.norm())
    return torch.stack(errors).mean(), torch.stack(cosines).mean().detach()


@pytest.mark.parametrize(
    ("size", "channels", "settings"),
    [(8, 3, []), (12, 1, ["encoder.patch_size=3", "method.window=false"]), (12, 3, ["encoder.patch_size=4"])],
)
def test_the_step_is_the_error_of_hidden_patches(size: int, channels: int, settings: list[str]):
    info = DataInfo(size, channels, samples=100, classes=None, batch_size=3, seed=4)
    method = made(info, *settings)
    images = torch.randn(3, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    result, (expected, cosine) = method(Batch([images], torch.arange(3)), NOW), slow_loss(method, images)
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(result.metrics["cosine"], cosine, rtol=1e-8, atol=0)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "patch", "channels", "numbers"),
    [(224, 16, 3, 108), (32, 4, 3, 108), (28, 4, 1, 36), (33, 3, 1, 9), (48, 8, 3, 108)],
)
def test_any_grid_gets_two_by_two_cells_in_a_patch(size: int, patch: int, channels: int, numbers: int):
    """An odd patch is one cell. The authors' copy in mmselfsup fits 14 patches a side only."""
    method = made(replace(INFO, image_size=size, channels=channels), f"encoder.patch_size={patch}")
    targets = method._targets(torch.rand(2, channels, size, size))
    assert targets.shape == (2, (size // patch) ** 2, numbers)
    assert method.head.out_features == numbers


def test_targets_of_a_patch_are_its_own_edges():
    method = made(replace(INFO, image_size=32), "encoder.patch_size=4")
    image = torch.zeros(1, 3, 32, 32)
    image[..., 9:11, 14] = 1.0  # rows 8 to 11, columns 12 to 15: patch 2 * 8 + 3, and a pixel beyond
    touched = method._targets(image).norm(dim=-1)[0] > 0
    assert touched.nonzero().flatten().tolist() == [19]


def test_positions_and_tokens_decay_as_the_authors_do():
    method = small("maskfeat")
    optimizer = make_optimizer(method, Recipe(weight_decay=0.05))
    decayed = {id(p) for group in optimizer.param_groups if group["decays"] for p in group["params"]}
    names = {name for name, p in method.named_parameters() if id(p) in decayed}
    assert {"mask_token", "encoder.vit.cls_token", "encoder.vit.pos_embed", "head.weight"} <= names
    assert not any(name.endswith(".bias") or "norm" in name for name in names)


def test_the_paper_hides_78_of_196_patches_of_crops_of_half_the_image():
    assert made(replace(INFO, image_size=224)).hidden == 78
    assert small("maskfeat").views == (View(crop=(0.5, 1.0), flip=0.5, interpolation="bicubic"),)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["encoder.patch_size=4", "method.cell=3"],
            r"^method\.cell=3 does not divide the patches' 4 pixels: take 1, 2, 4$",
        ),
        (["encoder.patch_size=8"], r"^method\.mask_ratio=0\.4 hides none of 1 patches"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        made(INFO, *settings)


def test_the_error_is_float32_inside_bf16_autocast():
    target = torch.linspace(-1, 1, 12).reshape(1, 2, 6)
    predicted = (target * 0.7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = squared_error(predicted, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (predicted.float() - target).square().mean())


def test_a_picture_shows_what_is_hidden_and_the_edges_that_are_predicted_of_it():
    method = small("maskfeat").eval()
    assert isinstance(method, MaskFeat)
    images = batch_of(method).views[0]
    made = method.picture(images)
    size, edge = method.encoder.patch_size, 9 * method.encoder.patch_size // method.cell
    hidden = patchify(made["seen"], size).abs().sum(2) == 0
    assert hidden.sum(1).tolist() == [method.hidden] * BATCH
    torch.testing.assert_close(patchify(made["seen"], size)[~hidden], patchify(images, size)[~hidden])
    torch.testing.assert_close(made["edges"], lines(histograms(images, method.cell, window=True)))
    predicted = patchify(made["predicted edges"], edge)
    assert (predicted[~hidden] == -1).all()
    places = draw_blocks(BATCH, method.encoder.grid, method.hidden, method.rng(0))
    tokens = encode_rest(method.encoder, images, places, method.mask_token[0])[:, 1:]
    cells = unpatchify(method.head(tokens), size // method.cell)
    torch.testing.assert_close(predicted[hidden], patchify(lines(cells), edge)[hidden])

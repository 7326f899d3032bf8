"""I-JEPA against its loss written out image by image, its blocks, and what cannot work."""

import math

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from eagleray.blocks.networks import sincos_positions
from eagleray.blocks.optimizers import make_optimizer
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, Progress
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.seeds import generator
from eagleray.encoders.vit import ViT
from eagleray_methods.ijepa import IJEPA, Layout, block_size, draw_blocks
from method_cases import NOW, batch_of, settings, small

SMALL = ["method.predictor_dim=32", "method.predictor_depth=1", "method.min_context=3"]


def made(*more: str) -> IJEPA:
    method = small("ijepa", *more)
    assert isinstance(method, IJEPA)
    for p in method.teacher.parameters():  # so that teacher and student do not agree
        p.data.mul_(1.1).add_(0.01)
    return method


def layout(grid: int, step: int = 0, count: int = 64, **settings: int) -> Layout:
    return draw_blocks(count, grid, IJEPA.Config(**settings), generator(0, step))


def written_out(method: IJEPA, images: Tensor) -> Tensor:
    """The authors' forward pass and loss, one image and one block after the other."""
    blocks, errors = draw_blocks(8, 4, method.config, method.rng(NOW.step)), []
    for image, context, targets in zip(images, blocks.context, blocks.targets, strict=True):
        patches = method.encoder.patches(image[None])
        with torch.no_grad():
            whole = method.teacher.tokens(method.teacher.patches(image[None]))[0, 1:]
            deviation = (whole - whole.mean(1, keepdim=True)).square().mean(1, keepdim=True).add(1e-5).sqrt()
            wanted = (whole - whole.mean(1, keepdim=True)) / deviation
        seen = method.embed(method.encoder.tokens(patches[:, context])[:, 1:]) + method.positions[context]
        for block in targets:
            asked = method.mask_token + method.positions[block]
            found = method.predictor(torch.cat([seen[0], asked])[None])[0, -len(block) :]
            difference = (found - wanted[block]).abs()
            errors.append(torch.where(difference < 1, difference**2 / 2, difference - 0.5).flatten())
    return torch.cat(errors).mean()


def test_the_step_is_the_papers_loss_written_out():
    method = made()
    batch = batch_of(method)
    batch.views[0] *= 3  # so that both parts of the smooth L1 loss are met
    result, expected = method(batch, NOW), written_out(method, batch.views[0])
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=1e-9)
    names, parameters = zip(*[(n, p) for n, p in method.named_parameters() if p.requires_grad], strict=True)
    found, wanted = (torch.autograd.grad(loss, parameters) for loss in (result.loss, expected))
    for name, one, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_the_variance_of_the_targets_is_that_over_images():
    method = made()
    batch = batch_of(method)
    whole = torch.stack([method.teacher.tokens(method.teacher.patches(x[None]))[0, 1:] for x in batch.views[0]])
    expected = F.layer_norm(whole, whole.shape[-1:]).var(0, correction=0).mean()
    torch.testing.assert_close(method(batch, NOW).metrics["target_variance"], expected)
    equal = Batch([batch.views[0][:1].expand_as(batch.views[0])], batch.indices)
    assert method(equal, NOW).metrics["target_variance"] < 1e-6 < expected


def test_the_encoder_sees_no_target_and_the_teacher_sees_all():
    method = made()
    batch = batch_of(method)
    blocks = draw_blocks(8, 4, method.config, method.rng(NOW.step))
    hidden = torch.ones(8, 16, dtype=torch.bool).scatter(1, blocks.context, False)
    pixels = hidden.unflatten(1, (4, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    before = method(batch, NOW)
    batch.views[0] = torch.where(pixels, -3 * batch.views[0] + 1, batch.views[0])
    after = method(batch, NOW)
    torch.testing.assert_close(before.embeddings, after.embeddings)
    assert abs(float((before.loss - after.loss).detach())) > 1e-4  # by what the teacher said of them
    assert float(before.metrics["context"]) == blocks.context.shape[1] / 16


@pytest.mark.parametrize("grid", [3, 4, 7, 8, 14, 16])
def test_context_and_targets_are_apart_and_the_blocks_of_one_shape(grid: int):
    for step in range(5):
        blocks = layout(grid, step, min_context=2)
        marked = torch.zeros(64, grid**2, dtype=torch.bool).scatter(1, blocks.targets.flatten(1), True)
        assert not marked.gather(1, blocks.context).any()
        assert all(len(set(row.tolist())) == len(row) for row in blocks.context)  # none is taken twice
        rows, columns = blocks.targets // grid, blocks.targets % grid
        height, width = rows.amax(2) - rows.amin(2) + 1, columns.amax(2) - columns.amin(2) + 1
        assert (height == height[0, 0]).all()
        assert (width == width[0, 0]).all()
        assert int(height[0, 0] * width[0, 0]) == blocks.targets.shape[2]
        assert blocks.targets.shape[1] == 4


@pytest.mark.parametrize("grid", [7, 8])
def test_ten_patches_stay_visible_on_small_grids_where_the_authors_code_does_not_end(grid: int):
    seen = [layout(grid, step, 256, min_context=10).context.shape[1] for step in range(30)]
    assert min(seen) == 10  # some batch has an image with no more


def test_a_layout_that_cannot_leave_enough_leaves_what_it_can():
    """Eight targets on a small grid: twenty tries are not enough, and yet it ends."""
    assert 1 <= layout(4, 0, 256, min_context=12, targets=8).context.shape[1] < 12


def test_blocks_reach_every_border_and_no_row_is_preferred():
    """The authors' blocks never reach the last row, and their contexts lose the last rows."""
    grid, seen, aimed = 8, torch.zeros(64), torch.zeros(64)
    for step in range(60):
        blocks = layout(grid, step, 256, min_context=4)
        seen += torch.zeros(256, 64).scatter(1, blocks.context, 1.0).mean(0) / blocks.context.shape[1]
        aimed += torch.zeros(256, 64).scatter(1, blocks.targets.flatten(1), 1.0).mean(0)
    for mean in (seen.view(grid, grid), aimed.view(grid, grid)):
        for turned in (mean.flip(0), mean.flip(1)):
            torch.testing.assert_close(mean, turned, rtol=0.15, atol=0)


def test_area_and_aspect_are_drawn_independently():
    sizes = set()
    for step in range(200):
        first = layout(16, step, 1).targets[0, 0]
        sizes.add((len(set((first // 16).tolist())), len(set((first % 16).tolist()))))
    assert all(0.15 * 256 * 0.8 <= height * width <= 0.2 * 256 * 1.15 for height, width in sizes)
    assert all(0.6 <= height / width <= 1.75 for height, width in sizes)
    assert (6, 8) in sizes  # large and wide: with one number for both, large blocks are high
    assert (8, 5) in sizes  # small and high


def test_blocks_are_a_function_of_the_step():
    assert torch.equal(layout(8, 1).context, layout(8, 1).context)
    assert not torch.equal(layout(8, 1).targets, layout(8, 2).targets)


def test_sizes_are_those_of_the_paper():
    assert block_size(14, 0.15, 1.0) == (5, 5)  # int(29.4) = 29 patches
    assert block_size(16, 0.2, 1.5) == (9, 6)  # 51 patches
    assert block_size(16, 0.2, 0.75) == (6, 8)
    assert block_size(8, 1.0, 1.0, whole=True) == (8, 8)
    assert block_size(2, 0.15, 1.0) == (1, 1)


def test_the_teacher_moves_by_a_linear_momentum_and_is_judged():
    method = made("method.momentum=0.9")
    method(batch_of(method), NOW).loss.backward()
    teacher = list(method.teacher.parameters())
    assert all(p.grad is None for p in teacher)
    before = [p.clone() for p in teacher]
    method.after_step(Progress(step=2, steps=10, epoch=0, epochs=1))
    moved = [0.92 * old + 0.08 * new.data for old, new in zip(before, method.encoder.parameters(), strict=True)]
    torch.testing.assert_close([p.data for p in teacher], moved)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(method.eval().encode(images), method.teacher(images))


def test_the_targets_are_float32_inside_bf16_autocast(monkeypatch: pytest.MonkeyPatch):
    method, given = made().float(), []
    monkeypatch.setattr(F, "smooth_l1_loss", lambda *both: (given.extend(both), (both[0] - both[1]).sum())[1])
    batch = batch_of(method)
    batch.views[0] = batch.views[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method(batch, NOW)
    assert [each.dtype for each in given] == [torch.float32] * 2


def test_the_papers_recipe_is_that_of_the_authors_file():
    recipe = load_run(None, ["method=ijepa", "recipe=paper", "batch_size=2048"]).optimizer
    assert math.isclose(recipe.peak_lr(2048), 1e-3)
    assert (recipe.weight_decay, recipe.final_weight_decay, recipe.warmup_epochs) == (0.04, 0.4, 40)


def test_positions_are_fixed_and_all_matrices_decay():
    method = made()
    assert isinstance(method.encoder, ViT)
    positions = method.encoder.vit.pos_embed
    assert not positions.requires_grad
    torch.testing.assert_close(positions[0, 1:], sincos_positions(method.encoder.grid, method.encoder.dim).double())
    groups = make_optimizer(method, load_run(None, settings("ijepa")).optimizer).param_groups
    decays = {id(weight): group["decays"] for group in groups for weight in group["params"]}
    trained = {name: weight for name, weight in method.named_parameters() if weight.requires_grad}
    assert {name for name, weight in trained.items() if decays[id(weight)] != (weight.ndim > 1)} == set()
    assert decays[id(method.encoder.vit.cls_token)]


def test_the_predictors_deeper_blocks_start_smaller():
    method = made("method.predictor_depth=9", "method.predictor_dim=64")
    blocks = [block for block in method.predictor if isinstance(block, Block)]
    for layers in ([block.attn.proj for block in blocks], [block.mlp.fc2 for block in blocks]):
        deviations = torch.stack([layer.weight.std() for layer in layers])  # pyright: ignore[reportArgumentType]
        expected = 0.02 / (2 * torch.arange(1.0, 10)).sqrt()
        torch.testing.assert_close(deviations, expected.double(), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["encoder.patch_size=4"], r"method\.min_context=4 leaves no .* among 4 patches: take 3 at most, or use sm"),
        (["encoder.patch_size=8"], r"method\.min_context=4 leaves no .* among 1 patches: use smaller patches"),
        (["method.min_context=13"], r"method\.min_context=13 leaves no .* among 16 patches: take 12 at most"),
    ],
)
def test_what_cannot_work_is_refused(more: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        made("method.min_context=4", *more)

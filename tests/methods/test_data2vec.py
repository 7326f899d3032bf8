"""data2vec against its equations written out number by number, its teacher, and what cannot work."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eagleray.augment import View
from eagleray.blocks.hidden_patches import draw_blocks
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.data2vec import Data2Vec, average_normalised, smooth_error
from method_cases import INFO, NOW, batch_of, small


def made(info: DataInfo = INFO, *more: str) -> Data2Vec:
    settings = ["method=data2vec", "encoder.depth=3", "encoder.dim=32", "method.blocks=2", *more]
    method = build_method(load_run(None, settings), info).double().train()
    assert isinstance(method, Data2Vec)
    draw = torch.Generator().manual_seed(5)
    for p in method.parameters():  # so that teacher and student differ, and norms and biases count
        p.data.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=draw))
    return method


def normalised(vector: list[float]) -> list[float]:
    mean = sum(vector) / len(vector)
    variance = sum((x - mean) ** 2 for x in vector) / len(vector)
    return [(x - mean) / math.sqrt(variance + 1e-5) for x in vector]


def slow_targets(method: Data2Vec, images: Tensor) -> list[list[list[float]]]:
    """What the teacher's last blocks give to each patch of the whole image, before its last norm."""
    vit: Any = method.teacher.vit
    kept = []
    x = torch.cat([vit.cls_token.expand(len(images), -1, -1), vit.patch_embed(images)], 1) + vit.pos_embed
    for block in vit.blocks:
        x = block(x)
        kept.append(x[:, 1:].tolist())
    kept = kept[-method.blocks :]
    found = []
    for n in range(len(images)):
        for place in range(method.encoder.grid**2):
            each = [normalised(block[n][place]) for block in kept]
            found.append(normalised([sum(values) / len(kept) for values in zip(*each, strict=True)]))
    return [found[n * method.encoder.grid**2 :][: method.encoder.grid**2] for n in range(len(images))]


@pytest.mark.parametrize(("size", "channels", "beta"), [(8, 3, 2.0), (8, 1, 0.3)])
def test_the_step_is_the_smooth_error_of_hidden_patches(size: int, channels: int, beta: float):
    info = DataInfo(size, channels, samples=100, classes=None, batch_size=3, seed=4)
    method = made(info, f"method.beta={beta}")
    images = torch.randn(3, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    targets = slow_targets(method, images)
    places = draw_blocks(3, method.encoder.grid, method.hidden, method.rng(NOW.step)).tolist()
    errors, regimes = [], set()
    for n, hidden in enumerate(places):
        mask = torch.zeros(1, method.encoder.grid**2, dtype=torch.bool)
        mask[0, hidden] = True
        tokens = method.encoder.tokens(method.encoder.patches(images[n : n + 1], mask, method.mask_token))[0, 1:]
        for place in hidden:
            predicted = method.head.weight @ tokens[place] + method.head.bias
            for p, target in zip(predicted, targets[n][place], strict=True):
                gap = (p - target).abs()
                regimes.add(bool(gap < beta))
                errors.append(gap**2 / (2 * beta) if gap < beta else gap - beta / 2)
    expected = torch.stack(errors).mean()
    result = method(Batch([images], torch.arange(3)), NOW)
    assert regimes == {True, False}
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=0)
    over_images = torch.tensor(targets, dtype=torch.float64).var(0, correction=0)
    torch.testing.assert_close(result.metrics["target_variance"], over_images.mean(), rtol=1e-9, atol=0)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)


def test_each_block_counts_the_same_whatever_its_size():
    """Normalised first, then averaged; the average of the blocks themselves would follow the largest."""
    blocks = [torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    larger = [blocks[0], 100 * blocks[1] + 3, blocks[2]]
    torch.testing.assert_close(average_normalised(larger), average_normalised(blocks), rtol=1e-3, atol=1e-3)
    assert not average_normalised(larger).allclose(average_normalised([sum(larger)]), atol=0.1)  # type: ignore[list-item]
    torch.testing.assert_close(
        average_normalised(blocks).square().mean(-1), torch.ones(2, 5).double(), rtol=0, atol=1e-3
    )


def test_targets_that_a_place_tells_have_no_variance():
    method = made()
    batch = batch_of(method)
    equal = Batch([torch.ones_like(batch.views[0])], batch.indices)
    targets = torch.tensor(slow_targets(method, equal.views[0].double()))
    assert targets.var(1).mean() > 0.01, "they differ between places"
    assert method(equal, NOW).metrics["target_variance"] < 1e-6


def test_the_teacher_follows_the_student_at_one_rate():
    method = made(INFO, "method.momentum=0.9")
    before = {name: p.clone() for name, p in method.teacher.named_parameters()}
    method.after_step(NOW)
    student = dict(method.encoder.named_parameters())
    for name, p in method.teacher.named_parameters():
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * student[name])


def test_the_paper_hides_120_of_196_patches_and_small_images_keep_their_object():
    method = made(replace(INFO, image_size=224))
    assert method.hidden == 120
    vit = load_run(None, ["method=data2vec", "encoder.depth=12", "encoder.dim=48"])
    assert build_method(vit, INFO).blocks == 6
    jitter = {"jitter": 1.0, "jitter_scale": (0.4, 0.4, 0.4, 0.0), "jitter_probability": 1.0}
    assert method.views == (View(crop=(0.08, 1.0), flip=0.5, interpolation="bicubic", **jitter),)
    assert small("data2vec").views[0].crop == (0.2, 1.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method.blocks=6"], r"^method\.blocks=6 must not exceed the 3 blocks of the encoder: leave it out$"),
        (["encoder.patch_size=8"], r"^method\.mask_ratio=0\.61 hides all of 1 patches"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        made(INFO, *settings)


def test_targets_and_loss_are_float32_inside_bf16_autocast():
    blocks = [torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        targets = average_normalised(blocks)
        loss = smooth_error(blocks[0], targets, 2.0)
    assert (targets.dtype, loss.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(targets, average_normalised([block.float() for block in blocks]))

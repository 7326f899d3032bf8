"""MSN against lightly's loss, its masks, its teacher, and across workers."""

import math

import pytest
import torch
from torch import Tensor, nn

from eagleray.blocks.optimizers import make_optimizer
from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.encoders.vit import ViT
from eagleray_methods.msn import MSN, msn_terms, sharpened
from gradients import assert_two_are_one, of_own_part
from method_cases import NOW, batch_of, settings, small

# Crops of the image's size: positions of others are interpolated in float32, and two workers' sums are rounded apart.
SMALL = ["method.hidden=16", "method.bottleneck=8", "method.prototypes=12", "method.local_size=8"]


def made(*more: str) -> MSN:
    method = small("msn", "method.local_size=4", *more).train()
    assert isinstance(method, MSN)
    for p in (*method.teacher.parameters(), *method.teacher_layers.parameters()):  # so that they do not agree
        p.data.mul_(1.1).add_(0.01)
    method.head.prototypes.weight.data.mul_(3)
    return method


@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("local_crops", [0, 3])
def test_the_step_is_lightlys_loss(local_crops: int, iterations: int):
    from lightly.loss import MSNLoss

    method = made(
        f"method.local_crops={local_crops}", f"method.iterations={iterations}", "method.entropy_weight=0.7",
        "method.temperature=0.2", "method.sharpening=0.4",
    )  # fmt: skip
    batch = batch_of(method)
    whole, masked, *crops = batch.views
    kept = method._kept(NOW.step, 8)
    patches = method.encoder.patches(masked)
    seen = torch.stack([patch[rows] for patch, rows in zip(patches, kept, strict=True)])
    anchors = [method.head.layers(method.encoder.tokens(seen)[:, 0])]
    if crops:
        together = method.encoder.tokens(method.encoder.patches(torch.cat(crops)))[:, 0]
        anchors.append(method.head.layers(together))
    with torch.no_grad():
        target = method.teacher_layers(method.teacher.tokens(method.teacher.patches(whole))[:, 0])
    theirs = MSNLoss(temperature=0.2, sinkhorn_iterations=iterations, regularization_weight=0.7)
    expected = theirs(torch.cat(anchors), target, method.head.prototypes.weight, target_sharpen_temperature=0.4)
    result = method(batch, NOW)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-9)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted if wanted is not None else torch.zeros_like(found))
    total = result.metrics["cross_entropy"] + 0.7 * result.metrics["unevenness"]
    torch.testing.assert_close(result.loss.detach(), total)


def test_equal_predictions_are_uneven_and_spread_ones_are_not():
    spread = 200 * torch.eye(6, dtype=torch.float64)[None]  # each image has a prototype of its own
    alike = spread[:, :1].expand(1, 6, 6)
    assert float(msn_terms(spread, spread[0].softmax(1))[1]) == pytest.approx(0, abs=1e-9)
    assert float(msn_terms(alike, alike[0].softmax(1))[1]) == pytest.approx(math.log(6))


def test_targets_are_sharper_and_fill_prototypes_equally():
    logits = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 2  # most like the first prototype
    plain, equal = sharpened(logits, 0.25, 0), sharpened(logits, 0.25, 50)
    torch.testing.assert_close(plain, logits.softmax(1) ** 4 / (logits.softmax(1) ** 4).sum(1, keepdim=True))
    assert float(plain.sum(0)[0]) > 30
    torch.testing.assert_close(equal.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(equal.sum(1), torch.ones(64, dtype=torch.float64))
    unused = torch.cat([logits[:, :1] - 1, logits], 1).float()  # no image is most like its first prototype
    assert sharpened(1e4 * unused, 0.1, 3).isfinite().all()


def test_prototypes_do_not_decay_and_the_head_has_batch_norms():
    method = made()
    groups = make_optimizer(method, load_run(None, settings("msn")).optimizer).param_groups
    decays = {id(weight): group["decays"] for group in groups for weight in group["params"]}
    assert not any(decays[id(weight)] for weight in method.head.prototypes.parameters())
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in method.head.modules()) == 2


def test_each_image_loses_its_own_patches_and_only_the_second_view_does():
    method = made("method.mask_ratio=0.3", "method.local_crops=1")
    kept = method._kept(3, 8)
    assert kept.shape == (8, 11)  # of 16, rounded down
    assert len({tuple(sorted(row.tolist())) for row in kept}) > 4
    seen: list[tuple[int, ...]] = []
    for part in (method.encoder, method.teacher):
        assert isinstance(part, ViT)
        part.vit.blocks[0].register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape[:2])))
    method(batch_of(method), NOW)
    assert seen == [(8, 12), (8, 5), (8, 17)]  # with the class token; the small crop has 2 x 2 patches
    assert made("method.mask_ratio=0").kept == 16


def test_the_teacher_moves_by_a_linear_momentum_gets_no_gradient_and_is_judged():
    method = made("method.momentum=0.9")
    method(batch_of(method), NOW).loss.backward()
    teacher = nn.ModuleList([method.teacher, method.teacher_layers])
    assert all(p.grad is None for p in teacher.parameters())
    assert method.head.prototypes.weight.grad is not None
    before = [p.clone() for p in teacher.parameters()]
    method.after_step(Progress(step=2, steps=10, epoch=0, epochs=1))
    student = [*method.encoder.parameters(), *method.head.layers.parameters()]
    moved = [0.92 * old + 0.08 * new.data for old, new in zip(before, student, strict=True)]
    torch.testing.assert_close([p.data for p in teacher.parameters()], moved)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(method.eval().encode(images), method.teacher(images))


def halves(logits: Tensor, teacher: Tensor) -> list[Tensor]:
    def loss(rows: Tensor, others: Tensor) -> Tensor:
        cross_entropy, unevenness = msn_terms(rows.transpose(0, 1), sharpened(others.detach(), 0.25, 3))
        return cross_entropy + 0.5 * unevenness + 0 * others.sum()

    return of_own_part(loss, logits, teacher)


@pytest.mark.slow
def test_two_workers_get_the_loss_and_gradient_of_one():
    draw = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(8, 3, 5, dtype=torch.float64, generator=draw)
    teacher = 3 * torch.randn(8, 5, dtype=torch.float64, generator=draw)
    logits[4:, :, 0] += 2
    assert_two_are_one(halves, logits, teacher)


def test_the_papers_recipe_is_that_of_the_authors_file():
    run = load_run(None, ["method=msn", "recipe=paper", "batch_size=1024"])
    recipe = run.optimizer
    assert (recipe.peak_lr(1024), recipe.weight_decay, recipe.final_weight_decay, recipe.clip) == (1e-3, 0.04, 0.4, 3)

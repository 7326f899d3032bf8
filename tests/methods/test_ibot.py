"""iBOT against lightly's two losses, its masks against BEiT's algorithm, and what cannot work."""

import math
import random

import pytest
import torch
from torch import Tensor

from eagleray.blocks.masking import block_masks
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray_methods import ibot
from eagleray_methods.ibot import IBOT, TRIED, masked_loss
from method_cases import NOW, batch_of, small

SMALL = [
    "method.hidden=16", "method.bottleneck=8", "method.prototypes=12", "method.local_size=4",
    "method.frozen_epochs=0.2", "method.centre_momentum=0.9", "method.teacher_temperature=0.07",
    "method.teacher_warmup=3",
]  # fmt: skip


def made(*more: str) -> IBOT:
    method = small("ibot", *more).train()
    assert isinstance(method, IBOT)
    for centre, slope in ((method.centre, 0.2), (method.patch_centre, -0.3)):
        centre.mean.copy_(torch.linspace(-slope, slope, 12))
    for p in (
        *method.teacher.parameters(),
        *method.teacher_head.parameters(),
    ):  # so that teacher and student do not agree
        p.data.mul_(1.1).add_(0.01)
    method.mask_token.data.normal_(generator=torch.Generator().manual_seed(0))
    return method


@pytest.mark.parametrize("local_crops", [0, 3])
@pytest.mark.parametrize("shape", ["block", "random"])
def test_the_step_is_lightlys_loss_of_classes_and_of_hidden_patches(shape: str, local_crops: int):
    from lightly.loss import DINOLoss, IBOTPatchLoss

    method = made(f"method.local_crops={local_crops}", f"method.mask_shape={shape}", "method.patch_weight=0.7")
    batch = batch_of(method)
    large, mask = torch.cat(batch.views[:2]), method._masks(NOW.step, 8)
    tokens = method.encoder.tokens(method.encoder.patches(large, mask, method.mask_token))
    classes = list(method.head(tokens[:, 0]).chunk(2))
    classes += [method.head(method.encoder.tokens(method.encoder.patches(v))[:, 0]) for v in batch.views[2:]]
    with torch.no_grad():
        logits = method.teacher_head(method.teacher.tokens(method.teacher.patches(large)))  # [2n, 1 + L, prototypes]
    temperature = 0.04 + (0.07 - 0.04) * 0.1  # 0.3 of the three epochs in which it warms up

    of_classes = DINOLoss(output_dim=12).double()
    of_classes.center.copy_(method.centre.mean[None, None])
    expected = of_classes(list(logits[:, 0].chunk(2)), classes, teacher_temp=temperature)
    of_patches = IBOTPatchLoss(output_dim=12).double()
    of_patches.center.center.copy_(method.patch_centre.mean[None])
    grid = mask.unflatten(1, (4, 4))
    patch_loss = of_patches(logits[:, 1:][mask], method.head(tokens[:, 1:][mask]), grid, teacher_temp=temperature)
    centre = 0.9 * method.patch_centre.mean + 0.1 * logits[:, 1:].mean((0, 1))  # of all patches, the paper's

    result = method(batch, NOW)
    torch.testing.assert_close(result.metrics["patch_loss"], patch_loss.detach(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(result.loss, expected + 0.7 * patch_loss, rtol=1e-5, atol=1e-8)
    names, parameters = zip(*[(n, p) for n, p in method.named_parameters() if p.requires_grad], strict=True)
    for name, found, wanted in zip(
        names,
        torch.autograd.grad(result.loss, parameters),
        torch.autograd.grad(expected + 0.7 * patch_loss, parameters),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(method.centre.mean, of_classes.center.squeeze(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(method.patch_centre.mean, centre, rtol=1e-10, atol=1e-12)


def test_the_loss_of_hidden_patches_is_float32_inside_bf16_autocast(monkeypatch: pytest.MonkeyPatch):
    """It takes what the head compares, in float32; autocast may lower neither that nor what follows."""
    given: list[Tensor] = []
    monkeypatch.setattr(ibot, "masked_loss", lambda *all_: given.extend(all_) or masked_loss(*all_))
    method = made("method.local_crops=0").float()
    batch = batch_of(method)
    batch.views[:] = [view.float() for view in batch.views]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        patch_loss = method(batch, NOW).metrics["patch_loss"]
    targets, logits, share, temperature = given
    assert (targets.dtype, logits.dtype, share.dtype) == (torch.float32,) * 3
    each = -(targets.double() * (logits.double() / temperature).log_softmax(1)).sum(1)
    expected = (each * share.double()).sum() / 16  # of two large crops of eight images
    torch.testing.assert_close(patch_loss, expected.detach().float(), rtol=1e-6, atol=1e-6)


def test_the_student_sees_no_hidden_patch_and_the_teacher_sees_all():
    method = made("method.mask_probability=1", "method.local_crops=0")
    batch, mask = batch_of(method), method._masks(NOW.step, 8)
    loss = method(batch, NOW).loss
    hidden = mask.unflatten(1, (4, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]  # in pixels
    large = torch.cat(batch.views[:2])
    seen: list[Tensor] = []
    method.encoder.vit.blocks[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    for images in (large, torch.where(hidden, -3 * large + 1, large)):
        batch.views[:] = list(images.chunk(2))
        changed = method(batch, NOW).loss
    torch.testing.assert_close(seen[0], seen[1])
    assert abs(float(changed.detach() - loss.detach())) > 1e-4  # by what the teacher said of them


def test_a_step_that_hides_nothing_still_gives_every_parameter_a_gradient(monkeypatch: pytest.MonkeyPatch):
    method = made()
    monkeypatch.setattr(method, "_masks", lambda *_: torch.zeros(16, 16, dtype=torch.bool))
    result = method(batch_of(method), NOW)
    result.loss.backward()
    assert float(result.metrics["patch_loss"]) == 0
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("shape", ["block", "random"])
def test_half_the_crops_are_masked_by_a_tenth_to_a_half(shape: str):
    method = made(f"method.mask_shape={shape}")
    masks = torch.cat([method._masks(step, 50) for step in range(40)])  # 4,000 crops of 16 patches
    counts = masks.sum(1)
    assert float((counts > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert int(counts.max()) == 7  # of up to 8
    if shape == "random":  # rounded down, from 1.6 to 8
        for count, share in ((1, 0.4), *((whole, 1.0) for whole in range(2, 8))):
            assert float((counts == count).float().mean()) == pytest.approx(0.5 * share / 6.4, abs=0.02)
    assert torch.equal(method._masks(7, 50), method._masks(7, 50))
    assert not torch.equal(method._masks(7, 50), method._masks(8, 50))


def beit(wanted: float, grid: int, draw: random.Random) -> list[list[bool]]:
    """BEiT's algorithm 1, one image and one place after the other."""
    mask = [[False] * grid for _ in range(grid)]
    hidden = 0
    while hidden < wanted:
        laid = 0
        for _ in range(10):
            area = draw.uniform((grid // 3) ** 2, wanted - hidden)
            aspect = math.exp(draw.uniform(math.log(0.3), math.log(1 / 0.3)))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows >= grid or columns >= grid:
                continue
            top, left = draw.randint(0, grid - rows), draw.randint(0, grid - columns)
            block = [(i, j) for i in range(top, top + rows) for j in range(left, left + columns)]
            new = [(i, j) for i, j in block if not mask[i][j]]
            if 0 < len(new) <= wanted - hidden:
                for i, j in new:
                    mask[i][j] = True
                laid = len(new)
                break
        if not laid:
            break
        hidden += laid
    return mask


@pytest.mark.parametrize(
    ("grid", "ratio"), [(8, 0.15), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((8, 0.45), (14, 0.3)))]
)
def test_blocks_are_laid_as_beit_lays_them(grid: int, ratio: float):
    count, draw = 4000, random.Random(0)
    numbers = torch.rand(TRIED, 4, count, generator=torch.Generator().manual_seed(0))
    ours = block_masks(torch.full((count,), ratio * grid**2), grid, numbers).unflatten(1, (grid, grid))
    theirs = torch.tensor([beit(ratio * grid**2, grid, draw) for _ in range(count)])
    assert int(ours.sum((1, 2)).max()) <= ratio * grid**2
    for measure in (hidden_share, neighbours):
        here, there = measure(ours), measure(theirs)
        error = 4 * math.sqrt(2 / count) * float(there.std()) + 1e-6
        assert float(here.mean()) == pytest.approx(float(there.mean()), abs=error)
    torch.testing.assert_close(ours.float().mean(0), theirs.float().mean(0), rtol=0, atol=0.05)


def hidden_share(masks: Tensor) -> Tensor:
    return masks.float().mean((1, 2))


def neighbours(masks: Tensor) -> Tensor:
    """Pairs of hidden places that touch, for each hidden one: how block-like a mask is."""
    down, right = masks[:, 1:] & masks[:, :-1], masks[:, :, 1:] & masks[:, :, :-1]
    return (down.sum((1, 2)) + right.sum((1, 2))) / masks.sum((1, 2)).clamp(min=1)


def test_the_teacher_and_both_centres_move_and_the_teacher_is_judged():
    method = made("method.momentum=0.9")
    teacher = [*method.teacher.parameters(), *method.teacher_head.parameters()]
    before = [p.clone() for p in teacher]
    centres = [method.centre.mean.clone(), method.patch_centre.mean.clone()]
    method(batch_of(method), NOW).loss.backward()
    assert all(p.grad is None for p in teacher)
    assert not any(map(torch.equal, centres, (method.centre.mean, method.patch_centre.mean)))
    method.after_step(Progress(step=5, steps=10, epoch=0, epochs=1))
    student = [*method.encoder.parameters(), *method.head.parameters()]
    moved = [0.95 * old + 0.05 * new.data for old, new in zip(before, student, strict=True)]
    torch.testing.assert_close([p.data for p in teacher], moved)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(method.eval().encode(images), method.teacher(images))


def test_only_prototypes_are_frozen_and_only_at_first():
    method = made("method.frozen_epochs=1")
    method(batch_of(method), NOW).loss.backward()
    method.before_step(Progress(step=10, steps=20, epoch=1, epochs=2))
    assert method.head.prototypes.weight.grad is not None
    method.before_step(Progress(step=9, steps=20, epoch=0, epochs=2))
    assert method.head.prototypes.weight.grad is None
    assert method.head.layers[0].weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method.mask_min=0.6"], r"method\.mask_min=0\.6 must not exceed method\.mask_max=0\.5"),
        (["encoder.patch_size=8"], r"method\.mask_max=0\.5 hides none of 1 patches: increase it, or use smaller"),
        (["method.local_size=5"], r"method\.local_size=5 must be a multiple of the patches' 2 pixels: take 4$"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        small("ibot", *settings)

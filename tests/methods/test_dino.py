"""DINO against lightly's loss, its centre, its teacher and what of it is frozen."""

import pytest
import torch
from torch import Tensor

from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.dino import DINO
from method_cases import INFO, NOW, batch_of, settings

SMALL = [
    "method.hidden=16", "method.bottleneck=8", "method.prototypes=12", "method.local_size=4",
    "method.frozen_epochs=0.2", "method.centre_momentum=0.9", "method.teacher_temperature=0.07",
    "method.teacher_warmup=3",
]  # fmt: skip


VIT = ["encoder=vit_tiny", "encoder.depth=1", "encoder.dim=32", "method.norm=false", "method.last_norm=false"]


def made(*more: str, vit: bool = False) -> DINO:
    plain = [each for each in settings("dino") if not (vit and each.startswith("encoder."))]
    method = build_method(load_run(None, [*plain, *(VIT if vit else []), *more]), INFO).double().train()
    assert isinstance(method, DINO)
    method.centre.mean.copy_(torch.linspace(-0.2, 0.2, 12))
    for p in method.teacher.parameters():  # so that teacher and student do not agree
        p.data.mul_(1.1).add_(0.01)
    return method


def student_and_teacher(method: DINO, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of every crop, and the teacher's of the large ones."""
    features = [method.encoder(torch.cat(views[:2]))]
    features += [method.encoder(torch.cat(views[2:]))] if len(views) > 2 else []
    student = method.head(torch.cat(features)).chunk(len(views))
    with torch.no_grad():
        return list(student), list(method.teacher(torch.cat(views[:2])).chunk(2))


@pytest.mark.parametrize("vit", [False, True], ids=["convnet", "vit"])
@pytest.mark.parametrize("local_crops", [0, 3])
def test_the_step_is_lightlys_loss_and_centre(local_crops: int, vit: bool):
    from lightly.loss import DINOLoss

    method = made(f"method.local_crops={local_crops}", vit=vit)
    batch = batch_of(method)
    assert [view.shape[-1] for view in batch.views] == [8, 8] + [4] * local_crops
    reference = DINOLoss(output_dim=12, student_temp=0.1, center_momentum=0.9).double()
    reference.center.copy_(method.centre.mean[None, None])
    student, teacher = student_and_teacher(method, batch.views)
    # 0.3 of an epoch has passed, and the temperature warms up for three.
    expected = reference(teacher, student, teacher_temp=0.04 + (0.07 - 0.04) * 0.1)
    result = method(batch, NOW)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-8)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    # It was applied before it moved on.
    torch.testing.assert_close(method.centre.mean, reference.center.squeeze(), rtol=1e-5, atol=1e-8)


def test_the_teacher_moves_by_a_momentum_that_ends_at_one_and_gets_no_gradient():
    method = made("method.momentum=0.9")
    before = [p.clone() for p in method.teacher.parameters()]
    method(batch_of(method), NOW).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    student = [*method.encoder.parameters(), *method.head.parameters()]
    for step, momentum in ((5, 0.95), (10, 1.0)):
        method.after_step(Progress(step=step, steps=10, epoch=0, epochs=1))
        before = [momentum * old + (1 - momentum) * new.data for old, new in zip(before, student, strict=True)]
        torch.testing.assert_close([p.data for p in method.teacher.parameters()], before)


def test_the_teacher_sees_large_crops_alone_and_is_what_is_judged():
    method = made()
    seen: list[torch.Size] = []
    method.teacher[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    method(batch_of(method), NOW)
    assert seen == [(16, 3, 8, 8)]
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    before = method.eval().encode(images)
    torch.testing.assert_close(before, method.teacher[0](images))
    assert not torch.allclose(before, method.encoder(images))


def test_only_prototypes_are_frozen_and_only_at_first():
    method = made("method.frozen_epochs=1")
    for step, free in ((9, False), (10, True)):
        now = Progress(step=step, steps=20, epoch=step // 10, epochs=2)
        method.zero_grad()
        method(batch_of(method), now).loss.backward()
        learnt = [n for n, p in method.named_parameters() if p.grad is not None]
        assert learnt == [n for n, p in method.named_parameters() if p.requires_grad]
        method.before_step(now)
        left = [n for n, p in method.named_parameters() if p.grad is not None]
        assert left == learnt if free else {*learnt} - {*left} == {"head.prototypes.weight"}


def test_the_teachers_temperature_warms_up(monkeypatch: pytest.MonkeyPatch):
    method, seen = made("method.teacher_warmup=2"), []
    targets = method.centre.targets
    monkeypatch.setattr(method.centre, "targets", lambda logits, t: (seen.append(t), targets(logits, t))[1])
    for step in (0, 10, 20, 30):
        method(batch_of(method), Progress(step=step, steps=40, epoch=step // 10, epochs=4))
    assert seen == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_the_papers_recipe_raises_the_weight_decay():
    run = load_run(None, ["method=dino", "recipe=paper"])
    assert (run.optimizer.weight_decay, run.optimizer.final_weight_decay) == (0.04, 0.4)
    assert (run.method.config.prototypes, run.method.config.local_crops) == (65536, 10)  # pyright: ignore


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["encoder.patch_size=2", "method.local_size=3"], r"local_size=3 must be a multiple of the patches' 2 .* 4$"),
        (["method.local_size=12"], r"method\.local_size=12 is larger than the images of 8 pixels: take 4$"),
    ],
)
def test_crops_that_cannot_be_are_refused(more: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        made(*more, vit=True)

"""What every method must fulfil: two workers equal one, and each against the formula of its paper."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from eagleray import distributed
from eagleray.augment.override import overridden
from eagleray.build import build_method
from eagleray.config import load_run
from eagleray.config.declared import declared
from eagleray.config.sections import Augment
from eagleray.method import Batch, DataInfo, LabelledBatch, Method, Progress
from eagleray_methods.fixmatch import consistency
from eagleray_methods.mae import patchify, take
from eagleray_methods.rotnet import four_rotations
from two_processes import two_processes

METHODS = sorted(declared("method"))
NOW = Progress(step=3, steps=10, epoch=0, epochs=1)
INFO = DataInfo(image_size=8, channels=3, samples=100, classes=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def small(name: str) -> Method:
    """The method, in float64, on an encoder that is as small as can be."""
    settings = {
        "byol": ["method.hidden=16"],
        "simclr": ["method.hidden=16"],
        "fixmatch": ["method.threshold=0"],
    }
    run = load_run(None, [f"method={name}", *settings.get(name, [])])
    narrow = ["encoder.depth=1", "encoder.dim=32"] if run.encoder.name == "vit_tiny" else ["encoder.width=8"]
    run = load_run(None, [f"method={name}", *settings.get(name, []), *narrow])
    return build_method(run, INFO).double()


def share(x: Tensor) -> Tensor:
    return x.chunk(distributed.world_size())[distributed.rank()]


def batch_of(method: Method) -> Batch:
    """Eight images, the second half unlike the first, so that a worker's own half says little of the whole."""
    draw = torch.Generator().manual_seed(1)
    views = []
    for _ in overridden(method.views, Augment()):
        view = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=draw)
        view[4:] = view[4:] * 3 + 1
        views.append(share(view))
    labelled = None
    if type(method).labels == "partial":
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=draw)
        images[2:] = images[2:] * 2 - 1
        labelled = LabelledBatch([share(images)], share(torch.tensor([0, 1, 1, 2])))
    return Batch(views, share(torch.arange(8)), labelled)


def one_step(name: str) -> dict[str, Tensor]:
    """Loss, gradients, and all the state after a step, as one worker of a group or as a single process."""
    method = small(name).train()
    stepper: Any = method
    if distributed.world_size() > 1:
        method = distributed.synchronise_batch_norm(method)
        stepper = DistributedDataParallel(method, broadcast_buffers=False)
    noise = torch.rand(8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def same_noise(*shape: Any, **_: Any) -> Tensor:
        """Each image its own noise, whichever worker holds it."""
        count, places = shape[0] if len(shape) == 1 else shape
        return share(noise)[:count, :places]

    with patch("torch.rand", same_noise):
        result = stepper(batch_of(method), NOW)
    result.loss.backward()
    gradients = {f"gradient {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    method.before_step(NOW)
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
    method.after_step(NOW)
    loss = distributed.all_reduce_mean(result.loss.detach())
    return {"loss": loss, **gradients, **{f"state {n}": v.clone() for n, v in method.state_dict().items()}}


@pytest.mark.parametrize("name", METHODS)
def test_two_workers_take_the_step_of_one(name: str):
    """Value, gradient, teacher and statistics, on asymmetric data."""
    alone = one_step(name)
    assert any(key.startswith("gradient") and value.abs().max() > 1e-6 for key, value in alone.items())
    for together in two_processes(one_step, name):
        assert together.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_to_its_declaration(name: str):
    method = small(name).train()
    result = method(batch_of(method), NOW)
    assert result.loss.ndim == 0
    assert result.loss.requires_grad
    assert set(result.metrics) == set(type(method).metrics)
    assert not any(z.requires_grad for z in result.embeddings)
    assert len({len(z) for z in result.embeddings}) == 1
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    assert method.eval().encode(images).shape == (5, method.encoder.dim)


def test_byol_is_the_sum_of_both_directions_and_moves_its_teacher():
    method = small("byol").train()
    batch = batch_of(method)
    teacher_before = [p.clone() for p in method.teacher.parameters()]
    loss = method(batch, NOW).loss
    reference = torch.zeros((), dtype=torch.float64)
    for seen, target in ((0, 1), (1, 0)):
        p = method.predictor(method.projector(method.encoder(batch.views[seen])))
        z = method.teacher(batch.views[target])
        reference = reference + (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(loss, reference)
    loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    method.after_step(Progress(step=5, steps=10, epoch=0, epochs=1))
    # Half way, the cosine has brought the momentum half way to 1 (the paper's appendix, "target network").
    momentum = 1 - (1 - method.config.momentum) * 0.5
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    for after, before, online in zip(method.teacher.parameters(), teacher_before, student, strict=True):
        torch.testing.assert_close(after.data, momentum * before + (1 - momentum) * online.data)


def test_rotations_are_right_angles_of_the_same_images():
    images = torch.randn(3, 2, 6, 6)
    turned = four_rotations(images).chunk(4)
    upright, quarter, half, _ = turned
    torch.testing.assert_close(upright, images)
    torch.testing.assert_close(half, images.flip(2, 3))
    torch.testing.assert_close(quarter, images.transpose(2, 3).flip(2))


def test_rotnet_reports_the_share_it_recognises():
    method = small("rotnet").train()
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))  # says "a quarter turn" to everything
    result = method(batch_of(method), NOW)
    assert float(result.metrics["rotation"]) == pytest.approx(0.25)


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


def test_fixmatch_averages_over_all_images_and_trains_the_strong_view_alone():
    weak = torch.tensor([[9.0, 0, 0], [0.1, 0, 0], [0, 0, 7.0]], dtype=torch.float64, requires_grad=True)
    strong = torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.float64, requires_grad=True)
    loss, share_confident = consistency(weak, strong, 0.95)
    expected = 0.0
    for guess, logits in ((0, strong[0]), (2, strong[2])):  # the second image is not sure enough
        expected = expected - float(logits.detach().log_softmax(0)[guess]) / 3
    assert float(loss.detach()) == pytest.approx(expected)
    assert float(share_confident) == pytest.approx(2 / 3)
    loss.backward()
    assert weak.grad is None
    assert strong.grad is not None
    assert strong.grad[1].abs().sum() == 0


def test_fixmatch_is_judged_by_its_average():
    method = small("fixmatch").eval()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before = method.classify(images)
    with torch.no_grad():
        for p in (*method.encoder.parameters(), *method.classifier.parameters()):
            p.add_(0.3)
    torch.testing.assert_close(method.classify(images), before)
    method.after_step(NOW)
    assert not torch.equal(method.classify(images), before)

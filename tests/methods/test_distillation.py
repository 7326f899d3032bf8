"""Distillation against equations 3 and 4, what of it learns, and which teachers are refused."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from eagleray.blocks.normalisation import renormalised
from eagleray.config import load_run
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.distillation import Distillation, distillation_loss
from method_cases import INFO, NOW, batch_of, finished_run, settings, small

DIGITS = DataInfo(image_size=8, channels=1, samples=100, classes=10)
FOLDER = tempfile.TemporaryDirectory()  # holds the teachers until this process ends


def teacher(name: str, info: DataInfo, *settings: str) -> Path:
    return finished_run(Path(FOLDER.name, name), info, "encoder.width=4", *settings)


SMALL = [f"method.teacher={teacher('of three classes', INFO, 'method=supervised')}"]
ON_DIGITS = [f"method.teacher={teacher('of digits', DIGITS, 'method=supervised')}"]


def distillation(*settings: str) -> Distillation:
    method = small("distillation", *settings).train()
    assert isinstance(method, Distillation)
    return method


def test_distillation_is_equation_three():
    generator = torch.Generator().manual_seed(0)
    student, taught = (torch.randn(6, 4, dtype=torch.float64, generator=generator) * 3 for _ in range(2))
    expected = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, taught, strict=True):
        share = [(y / 0.7).exp() for y in own]
        wanted = [(y / 0.7).exp() for y in other]
        for y in range(4):
            expected = expected - wanted[y] / sum(wanted) * (share[y] / sum(share)).log() / 6
    torch.testing.assert_close(distillation_loss(student, taught, 0.7), expected, rtol=1e-12, atol=1e-12)


def test_distillation_is_least_where_the_student_says_what_the_teacher_says():
    generator = torch.Generator().manual_seed(0)
    taught = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    same = taught.clone().requires_grad_()
    loss = distillation_loss(same, taught, 0.5)
    (gradient,) = torch.autograd.grad(loss, same)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    entropy = torch.distributions.Categorical(logits=taught / 0.5).entropy().mean()
    torch.testing.assert_close(loss.detach(), entropy)
    other = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    assert distillation_loss(other, taught, 0.5) > entropy + 0.1
    # Neither the level of the logits counts, nor their scale where the temperature has the same.
    torch.testing.assert_close(distillation_loss(other + 5, taught - 2, 0.5), distillation_loss(other, taught, 0.5))
    torch.testing.assert_close(distillation_loss(3 * other, 3 * taught, 1.5), distillation_loss(other, taught, 0.5))


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_few_labels_are_weighed_in_as_in_equation_four(weight: float):
    method = distillation(f"method.labelled={weight}", "method.temperature=0.5")
    batch = batch_of(method)
    assert batch.labelled is not None
    result = method(batch, NOW)
    images = batch.views[0]
    both = torch.cat([images, *(batch.labelled.views if weight else [])])
    logits = method.classifier(method.encoder(both))
    loss = distillation_loss(logits[:8], method.teacher.classify(images), 0.5)
    if weight:
        loss = (1 - weight) * loss + weight * F.cross_entropy(logits[8:], batch.labelled.targets)
    torch.testing.assert_close(result.loss, loss)
    assert len(result.embeddings[0]) == 8
    other = replace(batch.labelled, targets=(batch.labelled.targets + 1) % 3)
    changed = float(method(replace(batch, labelled=other), NOW).loss.detach())
    assert (changed == float(result.loss.detach())) is (weight == 0)  # then no label counts, and no view is made of one
    assert len(method.labelled_views) == (1 if weight else 0)


def test_the_teacher_stays_as_it_is():
    method = distillation()
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    images = batch_of(method).views[0]
    alone = method.teacher.classify(images[:1])
    torch.testing.assert_close(method.teacher.classify(images)[:1], alone)  # the batch's statistics play no part
    method(batch_of(method), NOW).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in (*method.encoder.parameters(), *method.classifier.parameters()))
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.state_dict().items())


def test_agreement_is_the_share_of_equal_guesses():
    method = distillation()
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    batch = batch_of(method)
    wanted = (method.teacher.classify(batch.views[0]).argmax(1) == 1).double().mean()
    assert float(method(batch, NOW).metrics["agreement"]) == pytest.approx(float(wanted))


def test_the_teacher_sees_images_normalised_as_when_it_learnt():
    pixels = torch.rand(2, 3, 4, 4)
    now = replace(INFO, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (now.mean, now.std))
    torch.testing.assert_close(renormalised((pixels - mean) / std, now, INFO), (pixels - 0.5) / 0.25)
    assert torch.equal(renormalised(pixels, INFO, INFO), pixels)
    method = build_method(load_run(None, settings("distillation")), now).double().eval()
    assert isinstance(method, Distillation)
    images = batch_of(method).views[0]
    taught = method.teacher.classify((images * std + mean - 0.5) / 0.25)
    expected = distillation_loss(method.classifier(method.encoder(images)), taught, method.config.temperature)
    torch.testing.assert_close(method(batch_of(method), NOW).loss, expected)


@pytest.mark.parametrize(
    ("info", "settings", "says"),
    [
        (INFO, ["method=simclr", "method.hidden=8"], "SimCLR, which has no classifier: fine-tune it first .*=finetune"),
        (replace(INFO, classes=4), ["method=supervised"], "distinguishes 4 classes, but these images have 3"),
        (replace(INFO, image_size=16), ["method=supervised"], "of 16 pixels, and these have 8: set image_size=16"),
        (replace(INFO, channels=1), ["method=supervised"], "of 1 channels, and these have 3"),
    ],
)
def test_a_teacher_that_cannot_teach_this_is_refused(info: DataInfo, settings: list[str], says: str, tmp_path: Path):
    place = finished_run(tmp_path / "run", info, "encoder.width=4", *settings)
    with pytest.raises(ConfigError, match=f"^method.teacher={place} .*{says}"):
        small("distillation", f"method.teacher={place}")


def test_a_student_can_become_a_teacher_though_its_own_is_gone(tmp_path: Path):
    first = finished_run(tmp_path / "first", INFO, "encoder.width=4", "method=supervised")
    second = finished_run(
        tmp_path / "second", INFO, "encoder.width=4", "method=distillation", f"method.teacher={first}"
    )
    first.rename(tmp_path / "gone")
    method = distillation(f"method.teacher={second}")
    assert isinstance(method.teacher, Distillation)


def test_the_teacher_must_be_named():
    with pytest.raises(ConfigError, match=r"method\.teacher is missing \(directory of a finished run"):
        load_run(None, ["method=distillation"])

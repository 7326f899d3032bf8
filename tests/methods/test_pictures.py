"""Pictures of methods that hide patches from the student alone: they show what the loss depends on."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray.blocks.masking import patchify
from eagleray_methods.ijepa import IJEPA
from method_cases import NOW, batch_of, small


@pytest.mark.parametrize(
    ("name", "view", "title"), [("ijepa", 0, "context"), ("msn", 1, "seen"), ("data2vec", 0, "seen")]
)
def test_a_picture_shows_the_pixels_that_the_student_sees(name: str, view: int, title: str):
    """The gradient of the loss passes through the student alone, so that it is 0 where a patch is hidden."""
    method, batch = small(name), batch_of(small(name))
    images = batch.views[view].requires_grad_()
    seen = method.picture(images.detach())[title]
    method(batch, replace(NOW, step=0)).loss.backward()
    assert images.grad is not None
    visible = (images.grad != 0).any(1, keepdim=True)
    assert 0 < visible.float().mean() < 1
    assert torch.equal(seen, images.where(visible, 0))


def test_a_picture_shows_the_blocks_whose_features_are_predicted(monkeypatch: pytest.MonkeyPatch):
    """The loss depends on the teacher's tokens there, and on no others."""
    method, batch = small("ijepa"), batch_of(small("ijepa"))
    assert isinstance(method, IJEPA)
    images, now = batch.views[0], replace(NOW, step=0)
    shown = (patchify(method.picture(images)["targets"], method.encoder.patch_size) != 0).any(-1)  # [N, L]
    assert 0 < shown.double().mean() < 1
    before, tokens = method(batch, now).loss, method.teacher.tokens

    def disturbed(patches: Tensor, *, there: Tensor) -> Tensor:
        noise = torch.randn(patches.shape, dtype=patches.dtype, generator=torch.Generator().manual_seed(0))
        return tokens(patches) + F.pad(noise * there[..., None], (0, 0, 1, 0))

    monkeypatch.setattr(method.teacher, "tokens", partial(disturbed, there=~shown))
    assert torch.equal(method(batch, now).loss, before)
    for image, place in shown.nonzero().tolist():
        there = torch.zeros_like(shown)
        there[image, place] = True
        monkeypatch.setattr(method.teacher, "tokens", partial(disturbed, there=there))
        assert method(batch, now).loss != before


def test_a_picture_of_few_images_hides_as_much_as_a_batch():
    method = small("ijepa")
    images = batch_of(method).views[0]
    for title, whole in method.picture(images).items():
        assert torch.equal(method.picture(images[:2])[title], whole[:2])

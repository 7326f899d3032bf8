"""Pictures of methods that hide patches from the student alone: they show what the loss depends on."""

from dataclasses import replace

import pytest
import torch

from eagleray.blocks.masking import patchify
from eagleray_methods.ijepa import IJEPA, draw_blocks
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


def test_a_picture_shows_the_blocks_that_are_predicted():
    method = small("ijepa")
    assert isinstance(method, IJEPA)
    images, size = batch_of(method).views[0], method.encoder.patch_size
    drawn = draw_blocks(len(images), method.encoder.grid, method.config, method.rng(0)).targets
    shown = patchify(method.picture(images)["targets"], size)
    for found, whole, places in zip(shown, patchify(images, size), drawn, strict=True):
        hidden = [place for place in range(len(whole)) if place not in places.flatten().tolist()]
        assert 0 < len(hidden) < len(whole)
        assert torch.equal(found, whole.index_fill(0, torch.tensor(hidden), 0))

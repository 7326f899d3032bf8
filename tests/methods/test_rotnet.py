"""RotNet: what is turned, and what is reported."""

import pytest
import torch

from eagleray_methods.rotnet import four_rotations
from method_cases import NOW, batch_of, small


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

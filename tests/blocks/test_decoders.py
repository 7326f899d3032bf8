"""Decoders: shapes for any side, DCGAN's layers and weights, the range of the pixels, and the cross-entropy."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from eagleray.blocks.decoders import Decoder, discriminator, discriminator_loss, map_sides, recognised
from method_cases import INFO


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 3, 4, 5, 8, 27, 28, 33])
def test_a_decoder_and_its_mirror_image_take_images_of_any_side(side: int, channels: int):
    info = replace(INFO, image_size=side, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    images = Decoder(10, info, width=4)(torch.randn(2, 10))
    assert images.shape == (2, channels, side, side)
    assert discriminator(channels, side, width=4, outputs=7)(images).shape == (2, 7)
    assert Decoder(10, info, width=4, side=6)(torch.randn(2, 10)).shape == (2, channels, 6, 6)


def test_maps_double_up_to_the_side():
    assert map_sides(64) == [4, 8, 16, 32, 64]
    assert map_sides(28) == [4, 7, 14, 28]
    assert map_sides(96) == [3, 6, 12, 24, 48, 96]


def test_at_64_pixels_the_networks_are_those_of_dcgan():
    """Its figure 1: 1024, 512, 256 and 128 maps of 4 to 32 pixels, then the image; the discriminator mirrors it."""
    decoder = Decoder(100, replace(INFO, image_size=64), width=128)
    found = [(m.in_channels, m.out_channels) for m in decoder.layers if isinstance(m, nn.ConvTranspose2d)]
    assert found == [(100, 1024), (1024, 512), (512, 256), (256, 128), (128, 3)]
    judge = discriminator(3, 64, width=128)
    found = [(m.in_channels, m.out_channels) for m in judge if isinstance(m, nn.Conv2d)]
    assert found == [(3, 128), (128, 256), (256, 512), (512, 1024), (1024, 1)]
    # "not applying batchnorm to the generator output layer and the discriminator input layer"
    kinds = [type(m).__name__ for m in decoder.layers][-2:], [type(m).__name__ for m in judge][:3]
    assert kinds == (["ReLU", "ConvTranspose2d"], ["Conv2d", "LeakyReLU", "Conv2d"])
    for module in [*decoder.modules(), *judge.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.3)
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None


def test_pixels_end_at_black_and_white():
    info = replace(INFO, mean=(0.3, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    decoder = Decoder(5, info, width=4).eval()
    with torch.no_grad():
        extreme = decoder(1e6 * torch.randn(50, 5))
    pixels = extreme * torch.tensor(info.std).view(3, 1, 1) + torch.tensor(info.mean).view(3, 1, 1)
    assert pixels.min().item() == pytest.approx(0, abs=1e-6)
    assert pixels.max().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(decoder.signed(extreme), 2 * pixels - 1, rtol=0, atol=1e-5)


def test_the_cross_entropy_is_that_of_probabilities():
    draw = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(6, 1, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours = torch.autograd.grad(loss := discriminator_loss(real, generated), [real, generated])
    expected = torch.zeros((), dtype=torch.float64)
    for each in real.flatten():
        expected = expected - torch.log(1 / (1 + torch.exp(-each))) / 6
    for each in generated.flatten():
        expected = expected - torch.log(1 - 1 / (1 + torch.exp(-each))) / 6
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, [real, generated]))
    assert discriminator_loss(torch.tensor([-200.0]), torch.tensor([200.0])).item() == pytest.approx(400)


def test_the_share_recognised_counts_both_kinds():
    assert recognised(torch.tensor([1.0, 2.0, -1.0, 3.0]), torch.tensor([-1.0, 1.0])).item() == pytest.approx(0.625)
    assert recognised(torch.ones(2), torch.ones(2)).item() == 0.5

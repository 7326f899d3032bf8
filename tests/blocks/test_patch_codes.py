"""A layer on whitened patches, against loops over an image's patches; what it leaves to autocast, and exports."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.blocks.patch_codes import Code, PatchCodes, layer_of, shrink
from eagleray.encoders.patch_codes import PatchCodes as Encoder
from eagleray.runs.export.formats import write

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def made(code: Code, size: int = 11, channels: int = 3) -> PatchCodes:
    torch.manual_seed(0)
    layer = PatchCodes(code, 7, size, channels).double()
    layer.set_pixels(MEAN[:channels], STD[:channels])
    with torch.no_grad():
        layer.mean.copy_(torch.randn(layer.mean.shape) / 10)
        layer.whitening.add_(torch.randn(layer.whitening.shape) / 20)
        if layer.threshold is not None:
            layer.threshold.copy_(torch.rand(7))
    return layer


def images(size: int = 11, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def slow_patch(layer: PatchCodes, pixels: np.ndarray, y: int, x: int) -> np.ndarray:
    patch = pixels[:, y : y + layer.side, x : x + layer.side].reshape(-1)
    patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10)
    return (patch - layer.mean.numpy()) @ layer.whitening.numpy()


def slow_code(layer: PatchCodes, patch: np.ndarray) -> list[float]:
    rows = layer.dictionary.detach().numpy()
    if layer.threshold is None:
        distances = [float(np.linalg.norm(patch - row)) for row in rows]
        return [max(0.0, sum(distances) / len(distances) - distance) for distance in distances]
    products, thresholds = rows @ patch, layer.threshold.tolist()
    return [float(np.sign(p) * max(0.0, abs(p) - t)) for p, t in zip(products, thresholds, strict=True)]


def slow_pixels(image: np.ndarray) -> np.ndarray:
    return np.stack([(plane * s + m) * 255 for plane, m, s in zip(image, MEAN, STD, strict=False)])


@pytest.mark.parametrize("code", ["triangle", "shrinkage"])
@pytest.mark.parametrize(("size", "channels"), [(11, 3), (8, 1), (4, 1)])
def test_features_are_codes_averaged_over_quadrants(code: Code, size: int, channels: int):
    layer = made(code, size, channels)
    count = size - layer.side + 1
    expected = []
    for image in images(size, channels).numpy():
        pixels, sums = slow_pixels(image), np.zeros((2, 2, layer.dim // 4))
        for y, x in np.ndindex(count, count):
            codes = slow_code(layer, slow_patch(layer, pixels, y, x))
            # Both signs of shrunk products apart.
            numbers = codes if code == "triangle" else [max(0.0, s * each) for s in (1, -1) for each in codes]
            sums[int(y >= count / 2), int(x >= count / 2)] += numbers
        expected.append(sums.reshape(-1) * 4 / count**2)
    found = layer(images(size, channels)).detach().numpy()
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-9)
    assert (found > 0).any()


@pytest.mark.parametrize(("size", "channels"), [(11, 3), (4, 1)])
def test_images_are_rebuilt_from_their_patches(size: int, channels: int):
    layer, given = made("triangle", size, channels), images(size, channels)
    torch.testing.assert_close(layer.rebuilt(given, lambda patches: patches), given)
    found = layer.rebuilt(given, lambda patches: layer.whitened(torch.zeros_like(patches)))  # patches without contrast
    expected, count = np.zeros((2, channels, size, size)), np.zeros((size, size))
    pixels = np.stack([slow_pixels(image) for image in given.numpy()])
    for y, x in np.ndindex(size - layer.side + 1, size - layer.side + 1):
        window = (slice(y, y + layer.side), slice(x, x + layer.side))
        expected[:, :, *window] += pixels[:, :, *window].mean((1, 2, 3), keepdims=True)
        count[window] += 1
    shown = np.stack([slow_pixels(image) for image in found.detach().numpy()])
    np.testing.assert_allclose(shown, expected / count, rtol=1e-6)


def test_larger_images_than_32_pixels_are_shrunk():
    layer = made("triangle", 64)
    small = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(layer(large), layer(small))
    assert layer.patches_in(64) == layer.patches_in(32) == 27 * 27


def test_drawn_patches_are_those_of_each_image():
    layer = made("triangle")
    drawn = layer.draw(images(), 5, torch.Generator().manual_seed(3))
    assert drawn.shape == (2, 5, layer.mean.numel())
    for image, patches in zip(images().numpy(), drawn, strict=True):
        pixels = slow_pixels(image)
        all_of_it = np.stack([slow_patch(layer, pixels, y, x) for y, x in np.ndindex(6, 6)])
        assert (np.abs(all_of_it[:, None] - patches.numpy()).max(2).min(0) < 1e-9).all()


def test_an_image_and_its_negative_have_other_features():
    """Their |codes| are the same."""
    layer = made("shrinkage", 8, 1)
    with torch.no_grad():
        layer.mean.zero_()
        layer.pixel_mean.fill_(0.5)
    image = images(8, 1)
    one, other = (layer(each).unflatten(1, (4, 2, 7)) for each in (image, -image))
    torch.testing.assert_close(one, other.flip(2))
    torch.testing.assert_close(one.sum(2), other.sum(2))
    assert ((one - other).abs().sum((1, 2, 3)) > 0.1 * one.sum((1, 2, 3))).all()


def test_shrinking_moves_numbers_towards_zero():
    assert shrink(torch.tensor([-3.0, -0.5, 0.0, 0.5, 2.0]), 1.0).tolist() == [-2.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("code", ["triangle", "shrinkage"])
def test_autocast_leaves_every_digit(code: Code):
    layer = made(code).float()
    expected = layer(images().float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(images().float()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triangle_codes", "shrinkage_codes"])
@pytest.mark.parametrize("form", ["safetensors", "torchscript", "onnx"])
def test_it_is_exported_as_other_encoders_are(name: str, form: str, tmp_path: Path):
    """Writing compares what is written with the network."""
    from eagleray.runs.export.encoder import Build, ExportedEncoder

    torch.manual_seed(0)
    network = Encoder(name, Encoder.Config(width=6), image_size=20, channels=3).eval()
    assert network.dim == network(torch.zeros(1, 3, 20, 20)).shape[1] == (24 if name == "triangle_codes" else 48)
    assert layer_of(network).mean.numel() == 108
    build = Build(name, {"width": 6}, 20, 20, 3, mean=MEAN, std=STD)
    exported = ExportedEncoder(network, build)
    assert write(form, exported, tmp_path, {"run": "abc", "eagleray": "0.1"}, "a card")

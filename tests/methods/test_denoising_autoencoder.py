"""Denoising autoencoder: what each corruption does, the loss written out slowly, and what the decoder sees."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from eagleray.config import load_run
from eagleray.contracts.batch import Batch
from eagleray.runs.assemble import build_method
from eagleray_methods.denoising_autoencoder import DenoisingAutoencoder, psnr
from method_cases import INFO, NOW, batch_of, small

SMALL = ["method.decoder_width=4"]
MEAN, STD = (0.3, 0.5, 0.6), (0.1, 0.2, 0.3)
CORRUPTIONS = ["masking", "gaussian", "salt_pepper"]


def made(corruption: str, *settings: str, side: int = 32) -> DenoisingAutoencoder:
    run = load_run(None, ["method=denoising_autoencoder", f"method.corruption={corruption}", "encoder.width=4",
                          *SMALL, *settings])  # fmt: skip
    method = build_method(run, replace(INFO, image_size=side, mean=MEAN, std=STD)).double().train()
    assert isinstance(method, DenoisingAutoencoder)
    return method


def pixels(images: Tensor) -> Tensor:
    """The images before they were normalised, from 0 to 1."""
    return images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def seen(method: DenoisingAutoencoder, images: Tensor) -> Tensor:
    """What reaches the encoder in a step."""
    caught: list[Tensor] = []
    handle = method.encoder.register_forward_hook(lambda _m, inputs, _o: caught.append(inputs[0]))
    method(Batch([images], torch.arange(len(images))), NOW)
    handle.remove()
    return caught[0]


def grey(count: int = 40, side: int = 32) -> Tensor:
    """Images of one grey, in normalised units."""
    return (torch.full((count, 3, side, side), 0.4) - torch.tensor(MEAN).view(3, 1, 1)).double() / torch.tensor(
        STD
    ).view(3, 1, 1)


@pytest.mark.parametrize(("corruption", "values"), [("masking", [0.0]), ("salt_pepper", [0.0, 1.0])])
def test_a_share_of_pixels_becomes_black_or_white_in_all_channels(corruption: str, values: list[float]):
    found = pixels(seen(made(corruption, "method.share=0.3"), grey()))
    kept = (found - 0.4).abs() < 1e-6
    assert (kept == kept[:, :1]).all(), "a channel that is left would give the pixel away"
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    for value in values:
        share = ((found - value).abs() < 1e-6).float().mean().item()
        assert share == pytest.approx(0.3 / len(values), abs=0.01)


def test_gaussian_noise_has_its_deviation_in_units_of_pixels():
    noise = pixels(seen(made("gaussian", "method.noise=0.2"), grey())) - 0.4
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    torch.testing.assert_close(noise.std((0, 2, 3)), torch.full((3,), 0.2).double(), rtol=0.02, atol=0)
    assert torch.corrcoef(noise.transpose(0, 1).flatten(1))[0, 1].abs() < 0.02


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruption_differs_between_images_and_steps(corruption: str):
    method = made(corruption)
    one, two = (method._corrupt(grey(2), step) for step in (0, 1))
    assert not torch.equal(one, two)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_loss_compares_with_the_clean_image(corruption: str):
    """Value and gradient: the mean over all numbers of the images, corrupted or not."""
    method = made(corruption, side=8)
    images = batch_of(method).views[0]
    corrupted = seen(method, images)
    loss = method(batch_of(method), NOW).loss
    loss.backward()
    got = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    made_of_it = method.decoder(method.encoder(corrupted))
    expected = sum((a - b) ** 2 for a, b in zip(images.flatten(), made_of_it.flatten(), strict=True)) / images.numel()
    assert isinstance(expected, Tensor)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, p in method.named_parameters():
        torch.testing.assert_close(got[name], p.grad)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_picture_is_what_the_loss_sees(corruption: str):
    method = made(corruption, side=8).eval()
    images = batch_of(method).views[0]
    shown = method.picture(images)
    metrics = method(batch_of(method), replace(NOW, step=0)).metrics
    for title, name in (("seen", "corrupted_psnr"), ("reconstructed", "psnr")):
        difference = psnr(method.decoder.signed(images), method.decoder.signed(shown[title]))
        torch.testing.assert_close(difference, metrics[name])
    torch.testing.assert_close(shown["reconstructed"], method.decoder(method.encoder(shown["seen"])))


def test_the_signal_to_noise_ratio_is_of_each_image():
    """A difference of 0.1 in pixels from 0 to 1 is 20 decibels, one of 0.01 is 40."""
    images = torch.zeros(2, 3, 4, 4)
    others = torch.stack([images[0] + 0.2, images[1] + 0.02])
    assert psnr(images, others).item() == pytest.approx(30, rel=1e-5)
    assert math.isfinite(psnr(images, images).item())


def test_reconstructions_are_reported_beside_the_corrupted_images():
    metrics = small("denoising_autoencoder", "method.share=0")(batch_of(small("denoising_autoencoder")), NOW).metrics
    assert float(metrics["corrupted_psnr"]) == pytest.approx(100)
    assert float(metrics["psnr"]) < 20

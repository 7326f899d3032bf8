"""EBGAN: both players against two optimizers, the repelling term and the margin, and whose statistics are kept."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eagleray.config import load_run
from eagleray.runs.assemble import build_method
from eagleray_methods.ebgan import EBGAN, distances, mean_squared_cosine
from gradients import assert_two_are_one, of_own_part, with_gradients
from method_cases import BATCH, INFO, NOW, batch_of, small

SMALL = ["method.width=4", "method.latent=6"]


def made(*settings: str) -> EBGAN:
    method = small("ebgan", *settings).train()
    assert isinstance(method, EBGAN)
    return method


def signed(images: Tensor) -> Tensor:
    """Normalised images as pixels from -1 to 1."""
    return (images * INFO.std[0] + INFO.mean[0]) * 2 - 1


def energies(method: EBGAN, images: Tensor) -> Tensor:
    """The distance of each image from its reconstruction."""
    pairs = zip(signed(images), signed(method.decoder(method.encoder(images))), strict=True)
    return torch.stack([torch.linalg.norm((x - again).flatten()) for x, again in pairs])


def repelling(features: Tensor) -> Tensor:
    """The paper's sum, pair by pair."""
    total, count = torch.zeros((), dtype=features.dtype), len(features)
    for i in range(count):
        for j in range(count):
            if i != j:
                total = total + torch.cosine_similarity(features[i], features[j], dim=0) ** 2
    return total / (count * (count - 1))


@pytest.mark.parametrize("margin", [0.05, 0.5, 2.0])
def test_both_players_have_the_gradients_of_two_optimizers(margin: float):
    """Where all, some or none of the generated images lie beyond the margin."""
    method = made(f"method.margin={margin}", "method.repelling=0.3")
    twin = deepcopy(method)
    result = method(batch_of(method), NOW)
    result.loss.backward()
    generated = twin.generator(torch.randn(BATCH, 6, generator=twin.rng(NOW.step)).double())
    real, pushed = energies(twin, batch_of(twin).views[0]), energies(twin, generated)
    limit = margin * (3 * 8 * 8) ** 0.5
    of_discriminator = real.mean() + torch.clamp(limit - pushed, min=0).mean()
    of_generator = pushed.mean() + 0.3 * repelling(twin.encoder(generated))
    torch.testing.assert_close(result.loss, of_discriminator + of_generator, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.metrics["energy"], real.mean().detach())
    torch.testing.assert_close(result.metrics["generated_energy"], pushed.mean().detach())
    torch.testing.assert_close(result.metrics["similarity"], repelling(twin.encoder(generated)).detach())
    for part, loss in ((("encoder", "decoder"), of_discriminator), (("generator",), of_generator)):
        names = [name for name, _ in twin.named_parameters() if name.startswith(part)]
        gradients = torch.autograd.grad(loss, [twin.get_parameter(name) for name in names], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            torch.testing.assert_close(
                method.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_repelling_term_is_that_of_all_pairs():
    features = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for ours, expected in zip(
        with_gradients(mean_squared_cosine, features), with_gradients(repelling, features), strict=True
    ):
        torch.testing.assert_close(ours, expected)
    assert mean_squared_cosine(torch.eye(4)).item() == 0
    assert mean_squared_cosine(torch.ones(4, 3)).item() == pytest.approx(1)
    assert mean_squared_cosine(torch.zeros(4, 3)).item() == 0


def own_part(features: Tensor) -> list[Tensor]:
    return of_own_part(mean_squared_cosine, features)


@pytest.mark.slow
def test_the_repelling_term_of_two_workers_is_that_of_one():
    features = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_two_are_one(own_part, features)


@pytest.mark.parametrize(("side", "channels", "expected"), [(64, 3, 20), (128, 3, 40), (256, 3, 80), (32, 3, 10)])
def test_the_margin_is_that_of_the_paper_at_its_sizes(side: int, channels: int, expected: float):
    """Faces of 64 pixels: 20; ImageNet of 128: 40, of 256: 80."""
    run = load_run(None, ["method=ebgan", "encoder.width=4", *SMALL])
    method = build_method(run, replace(INFO, image_size=side, channels=channels))
    assert isinstance(method, EBGAN)
    assert method.margin == pytest.approx(expected, rel=0.01)


def test_distances_of_equal_images_have_a_gradient():
    _, gradient = with_gradients(lambda x: distances(x, torch.zeros_like(x)).sum(), torch.zeros(2, 3, 4, 4))
    assert torch.isfinite(gradient).all()
    assert distances(torch.ones(1, 3, 4, 4), -torch.ones(1, 3, 4, 4)).item() == pytest.approx(48**0.5 * 2)


def test_evaluation_uses_the_statistics_of_real_images_alone():
    method = made()
    twin = deepcopy(method)
    method(batch_of(method), NOW)
    twin.decoder(twin.encoder(batch_of(twin).views[0]))
    norms = 0
    for part, same in zip(method.modules(), twin.modules(), strict=True):
        if isinstance(part, nn.BatchNorm2d) and part not in set(method.generator.modules()):
            torch.testing.assert_close(part.running_mean, same.running_mean, rtol=0, atol=0)
            torch.testing.assert_close(part.running_var, same.running_var, rtol=0, atol=0)
            norms += 1
    assert norms > 2


def test_a_picture_shows_the_discriminators_reconstruction_and_what_is_generated():
    method = made().eval()
    images = batch_of(method).views[0]
    shown = method.picture(images)
    torch.testing.assert_close(distances(signed(images), signed(shown["reconstructed"])), energies(method, images))
    drawn = torch.randn(2 * len(images), method.config.latent, generator=method.rng(0)).double()
    torch.testing.assert_close(shown["generated"], method.generator(drawn))

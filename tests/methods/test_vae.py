"""VAE: its two terms against torch's distributions, what it samples, and what tells of posterior collapse."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from eagleray.contracts.batch import Batch
from eagleray_methods.vae import VAE, kl_from_prior, negative_log_density
from method_cases import BATCH, NOW, batch_of, small

SMALL = ["method.decoder_width=4", "method.latent=6"]


def made(*settings: str) -> VAE:
    method = small("vae", *settings).train()
    assert isinstance(method, VAE)
    return method


def moments(method: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latent variables."""
    mean, log_variance = method.posterior(method.encoder(images)).chunk(2, 1)
    return mean, log_variance.exp().sqrt()


def test_the_divergence_is_that_of_torchs_distributions():
    draw = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(5, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_from_prior(mean, log_variance), expected)
    assert not kl_from_prior(torch.zeros(3, 4), torch.zeros(3, 4)).any()


def test_an_image_off_by_one_everywhere_costs_half_a_nat_a_number():
    """3,072 numbers of 32 pixels in colour: 1,536 nats. A mean over pixels would leave half a nat."""
    images = torch.zeros(2, 3, 32, 32)
    torch.testing.assert_close(negative_log_density(images, images + 1, 1.0), torch.full((2,), 1536.0))
    torch.testing.assert_close(negative_log_density(images, images + 1, 0.5), torch.full((2,), 4 * 1536.0))


@pytest.mark.parametrize(("beta", "deviation"), [(1.0, 1.0), (4.0, 0.3)])
def test_the_loss_is_the_evidence_lower_bound(beta: float, deviation: float):
    """Value and gradient against densities of torch, with the noise of the step."""
    method = made(f"method.beta={beta}", f"method.deviation={deviation}")
    images = batch_of(method).views[0]
    result = method(batch_of(method), NOW)
    loss = result.loss
    loss.backward()
    got = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    mean, spread = moments(method, images)
    noise = torch.randn(BATCH, 6, generator=method.rng(NOW.step))
    centre = method.decoder(mean + spread * noise)
    constant = Normal(0.0, deviation).log_prob(torch.tensor(0.0)).item()
    log_density = (Normal(centre, deviation).log_prob(images) - constant).sum((1, 2, 3))
    divergence = kl_divergence(Normal(mean, spread), Normal(0.0, 1.0)).sum(1)
    expected = (beta * divergence - log_density).mean()
    torch.testing.assert_close(result.metrics["kl"], divergence.mean().detach())
    torch.testing.assert_close(result.metrics["reconstruction"], (centre - images).square().mean().detach())
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert got
    for name, p in method.named_parameters():
        torch.testing.assert_close(got[name], p.grad)


def test_every_image_and_step_has_noise_of_its_own():
    method = made()
    with torch.no_grad():
        method.posterior.weight.zero_()
        assert method.posterior.bias is not None
        method.posterior.bias.zero_()
    sampled: list[Tensor] = []
    method.decoder.register_forward_hook(lambda _m, inputs, _o: sampled.append(inputs[0]))
    for step in (0, 1):
        method(batch_of(method), type(NOW)(step, 2, 0, 1))
    assert torch.cat(sampled).unique(dim=0).shape == (2 * BATCH, 6)
    assert torch.cat(sampled).std().item() == pytest.approx(1, abs=0.2)


def test_active_units_and_divergence_tell_of_posterior_collapse():
    method = made()
    metrics = method(batch_of(method), NOW).metrics
    with torch.no_grad():
        assert method.posterior.bias is not None
        method.posterior.weight[2:].zero_()  # two means follow the image, all variances are the prior's
        method.posterior.bias.zero_()
        method.posterior.weight[:2] *= 100
    some = method(batch_of(method), NOW).metrics
    assert float(some["active_units"]) == 2
    with torch.no_grad():
        method.posterior.weight.zero_()
    collapsed = method(batch_of(method), NOW).metrics
    assert float(collapsed["active_units"]) == 0
    assert float(collapsed["kl"]) == 0
    assert float(metrics["kl"]) > 0


def test_a_latent_is_active_above_a_variance_of_a_hundredth():
    method = made()
    batch = batch_of(method)
    assert method.posterior.bias is not None
    with torch.no_grad():
        method.posterior.weight[6:].zero_()
        method.posterior.bias.zero_()
        means = method.encoder(batch.views[0]) @ method.posterior.weight[:6].T
        wanted = torch.tensor([0.0095, 0.0105, 0.1, 1e-4, 0.0, 0.02])
        method.posterior.weight[:6] *= (wanted / means.var(0, correction=0)).sqrt()[:, None]
    assert float(method(batch, NOW).metrics["active_units"]) == 3


def test_the_divergence_is_float32_inside_bf16_autocast():
    method = made().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = method(Batch([batch_of(method).views[0].float()], batch_of(method).indices), NOW)
    assert result.metrics["kl"].dtype == torch.float32


def test_a_picture_shows_the_reconstruction_from_the_means_and_samples_of_the_prior():
    method = made().eval()
    images = batch_of(method).views[0]
    shown = method.picture(images)
    torch.testing.assert_close(shown["reconstructed"], method.decoder(moments(method, images)[0]))
    drawn = torch.randn(2 * BATCH, method.config.latent, generator=method.rng(0)).double()
    torch.testing.assert_close(shown["generated"], method.decoder(drawn))

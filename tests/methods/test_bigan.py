"""BiGAN: three players on one loss against optimizers of their own, and what each pair consists of."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from eagleray_methods.bigan import BiGAN
from method_cases import BATCH, NOW, batch_of, small

SMALL = ["method.latent=6", "method.width=4", "method.hidden=8"]


def made() -> BiGAN:
    method = small("bigan").train()
    assert isinstance(method, BiGAN)
    with torch.no_grad():  # DCGAN's small weights would make all logits equal
        for p in method.discriminator.parameters():
            p.add_(0.2 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(p.numel())))
    return method


def drawn(method: BiGAN) -> Tensor:
    return torch.rand(BATCH, 6, generator=method.rng(NOW.step)).double() * 2 - 1


def test_three_players_have_the_gradients_of_their_own_losses():
    """D minimises its cross-entropy; E and G that of the exchanged labels, each through its own pairs."""
    method = made()
    twin = deepcopy(method)
    result = method(batch_of(method), NOW)
    result.loss.backward()
    images, z = batch_of(twin).views[0], drawn(twin)
    encoded = 2 * torch.sigmoid(twin.latent(twin.encoder(images))) - 1  # as the authors' code does
    real = torch.sigmoid(twin.discriminator(images, encoded))
    fake = torch.sigmoid(twin.discriminator(twin.generator(z), z))
    one, zero = torch.ones_like(real), torch.zeros_like(real)
    of_discriminator = binary_cross_entropy(real, one) + binary_cross_entropy(fake, zero)
    exchanged = binary_cross_entropy(real, zero) + binary_cross_entropy(fake, one)
    torch.testing.assert_close(result.loss, of_discriminator + exchanged)
    share = ((real > 0.5).double().mean() + (fake <= 0.5).double().mean()) / 2
    assert float(result.metrics["recognised"]) == pytest.approx(float(share))
    for part, loss in (("discriminator", of_discriminator), (("encoder", "latent", "generator"), exchanged)):
        names = [name for name, _ in twin.named_parameters() if name.startswith(part)]
        gradients = torch.autograd.grad(loss, [twin.get_parameter(name) for name in names], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(
                method.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_discriminator_sees_one_kind_of_pairs_in_a_pass():
    """Four passes: for each kind of pair one for the discriminator and one for the others."""
    method = made()
    pairs: list[tuple[Tensor, ...]] = []
    method.discriminator.register_forward_hook(lambda _m, inputs, _o: pairs.append(inputs))
    method(batch_of(method), NOW)
    images, z = batch_of(method).views[0], drawn(method)
    assert len(pairs) == 4
    assert [torch.equal(image, images) for image, _ in pairs].count(True) == 2
    for image, latent in pairs:
        assert torch.equal(image, images) != torch.equal(latent, z)


def test_latent_vectors_are_drawn_evenly_for_each_image_and_step():
    method = made()
    seen: list[Tensor] = []
    method.generator.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    for step in range(20):
        method(batch_of(method), type(NOW)(step, 20, 0, 1))
    found = torch.cat(seen)
    assert len(found.unique(dim=0)) == 20 * BATCH
    assert found.abs().max() <= 1
    assert found.std().item() == pytest.approx(3**-0.5, rel=0.05)


def test_a_picture_shows_what_is_generated_from_the_encoded_image_and_from_drawn_vectors():
    method = made().eval()
    images = batch_of(method).views[0]
    made_of_it = method.picture(images)
    encoded = 2 * torch.sigmoid(method.latent(method.encode(images))) - 1
    torch.testing.assert_close(made_of_it["reconstructed"], method.generator(encoded))
    drawn = torch.rand(2 * BATCH, 6, generator=method.rng(0)).double() * 2 - 1
    torch.testing.assert_close(made_of_it["generated"], method.generator(drawn))


def test_the_discriminator_may_learn_more_slowly_than_the_others():
    method = made()
    (group,) = method.parameter_groups()
    assert group.module is method.discriminator
    assert group.lr == method.config.discriminator_rate == 0.2, "of the small recipe"

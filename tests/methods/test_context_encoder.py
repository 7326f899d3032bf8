"""Context encoder: what is hidden and weighted, both players against two optimizers, and what the encoder sees."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.recipe import Recipe
from eagleray.runs.assemble import build_method
from eagleray_methods.context_encoder import ContextEncoder, valleys
from method_cases import INFO, NOW, batch_of, small

SMALL = ["method.width=4"]


def made(*settings: str) -> ContextEncoder:
    method = small("context_encoder", *settings).train()
    assert isinstance(method, ContextEncoder)
    return method


def seen(method: ContextEncoder) -> Tensor:
    """What reaches the encoder in a step."""
    caught: list[Tensor] = []
    handle = method.encoder.register_forward_hook(lambda _m, inputs, _o: caught.append(inputs[0]))
    method(batch_of(method), NOW)
    handle.remove()
    return caught[0]


def test_the_predicted_square_has_a_rim_that_the_encoder_sees_and_that_weighs_ten():
    """The authors' numbers: 128 pixels, a square of 64 predicted, 4 of them seen on each side."""
    info = replace(INFO, image_size=128)
    run = load_run(None, ["method=context_encoder", "method.hole=centre", "encoder.width=4", *SMALL])
    method = build_method(run, info)
    assert isinstance(method, ContextEncoder)
    hidden = method._hidden(torch.zeros(2, 3, 128, 128), 0)
    expected = torch.zeros(2, 1, 128, 128, dtype=torch.bool)
    expected[:, :, 36:92, 36:92] = True
    assert torch.equal(hidden, expected)
    weights = method._weights(method._predicted(hidden))
    assert weights.shape == (2, 1, 64, 64)
    assert (weights[:, :, 4:60, 4:60] == 1).all()
    assert weights.sum().item() == 2 * (56**2 + 10 * (64**2 - 56**2))


def test_random_regions_are_a_quarter_in_pieces_and_differ():
    noise = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = valleys(noise, 32, 0.25)
    assert (found.sum((1, 2, 3)) == 256).all()
    assert len(found.unique(dim=0)) == 50
    assert found.float().mean((0, 1))[:4].mean().item() == pytest.approx(0.25, abs=0.08)  # no place is preferred
    pairs = (found[..., 1:] == found[..., :-1]).float().mean().item()
    assert pairs > 0.85, "neighbours mostly agree; independent pixels would in 62 %"
    blocks = found.float().unflatten(-1, (8, 4)).unflatten(-3, (8, 4)).mean((-1, -3))
    assert ((blocks > 0) & (blocks < 1)).float().mean() > 0.3, "regions are no squares of the noise"
    low = torch.ones(1, 1, 8, 8)
    low[:, :, 1, 6] = 0.0
    around = valleys(low, 32, 16 / 1024)[0, 0].nonzero().float().mean(0)
    torch.testing.assert_close(around, torch.tensor([5.5, 25.5]), rtol=0, atol=1.0)
    method = made()
    images = batch_of(method).views[0]
    assert not torch.equal(method._hidden(images, 0), method._hidden(images, 1))


@pytest.mark.parametrize("hole", ["random", "centre"])
def test_the_encoder_sees_nothing_of_what_is_hidden(hole: str):
    """The copy that would be a shortcut: pixels of the hole, which the mean colour replaces."""
    method = made(f"method.hole={hole}")
    images = batch_of(method).views[0]
    hidden = method._hidden(images, NOW.step).expand_as(images)
    shown = seen(method)
    assert hidden.any()
    assert not shown[hidden].any()
    assert torch.equal(shown[~hidden], images[~hidden])


def signed(images: Tensor) -> Tensor:
    """Normalised images as pixels from -1 to 1."""
    return (images * INFO.std[0] + INFO.mean[0]) * 2 - 1


def losses(method: ContextEncoder, weight: float) -> tuple[Tensor, Tensor]:
    """The generator's and the discriminator's loss, written out for each image."""
    images = batch_of(method).views[0]
    hidden = method._hidden(images, NOW.step)
    painted = signed(method.decoder(method.encoder(torch.where(hidden, torch.zeros(()).double(), images))))
    real, errors, generated = signed(images), [], []
    if method.config.hole == "centre":
        real, hidden = real[:, :, 2:6, 2:6], hidden[:, :, 2:6, 2:6]
    for x, made_of_it, mask in zip(real, painted, hidden[:, 0], strict=True):
        square = (x - made_of_it) ** 2
        if method.config.hole == "centre":
            rim, inner = square[:, ~mask].sum() * 10, square[:, mask].sum()
            errors.append((rim + inner) / (3 * 16))
            generated.append(made_of_it)
        else:
            errors.append(square[:, mask].mean())
            generated.append(x * ~mask + made_of_it * mask)
    error = torch.stack(errors).mean()
    if method.discriminator is None:
        return error, error.new_zeros(())
    on_real, on_generated = (torch.sigmoid(method.discriminator(each)) for each in (real, torch.stack(generated)))
    fooled = nn.functional.binary_cross_entropy(on_generated, torch.ones_like(on_generated))
    found = nn.functional.binary_cross_entropy(on_real, torch.ones_like(on_real))
    found = found + nn.functional.binary_cross_entropy(on_generated, torch.zeros_like(on_generated))
    return (1 - weight) * error + weight * fooled, found


@pytest.mark.parametrize("hole", ["random", "centre"])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_both_players_take_the_steps_of_two_optimizers(hole: str, weight: float):
    """Losses, gradients and steps; the generator's rate is ten times the discriminator's."""
    settings = f"method.hole={hole}", f"method.adversarial={weight}"
    ours, theirs = made(*settings), made(*settings)
    theirs.load_state_dict(ours.state_dict())
    recipe = Recipe(name="sgd", lr=0.01, lr_scaling="none", weight_decay=0.0, momentum=0.0)
    optimizer = make_optimizer(ours, recipe)
    set_rates(optimizer, recipe, 256, Progress(0, 10, 0, 1))
    loss = ours(batch_of(ours), NOW).loss
    loss.backward()
    optimizer.step()
    generator, judge = losses(theirs, weight)
    torch.testing.assert_close(loss, generator + judge)
    players = [([*theirs.encoder.parameters(), *theirs.decoder.parameters()], generator, 0.1)]
    if theirs.discriminator is not None:
        players.append((list(theirs.discriminator.parameters()), judge, 0.01))
    for parameters, of_player, rate in players:
        gradients = torch.autograd.grad(of_player, parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
            with torch.no_grad():
                parameter.sub_(rate * gradient)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_without_a_weight_there_is_no_discriminator():
    method = made("method.adversarial=0")
    assert not any("discriminator" in name for name, _ in method.named_parameters())
    assert float(method(batch_of(method), NOW).metrics["recognised"]) == 0.5


@pytest.mark.parametrize("hole", ["random", "centre"])
def test_a_picture_shows_the_image_with_its_hole_painted(hole: str):
    method = made(f"method.hole={hole}", "method.adversarial=0")
    images = batch_of(method).views[0]
    shown = method.picture(images)
    mask, whole = shown["seen"] == 0, shown["completed"]
    assert mask.double().mean() == 1 / 4 if hole == "random" else mask.any()
    for each in shown.values():
        assert torch.equal(each[~mask], images[~mask])
    reported = method(batch_of(method), replace(NOW, step=0)).metrics["reconstruction"]
    torch.testing.assert_close((signed(whole) - signed(images))[mask].square().mean(), reported)


def test_images_too_small_for_a_hole_are_refused():
    with pytest.raises(ConfigError, match=r"^image_size=6 leaves too little around a hole: take 8 or more$"):
        made("image_size=6")


def test_the_papers_settings_are_those_of_the_authors_code():
    """Random regions, an adversarial weight of .001, Adam at 2e-4 with beta 0.5, ten times that for the generator."""
    run = load_run(None, ["method=context_encoder", "recipe=paper", "batch_size=64"])
    assert run.method.config.model_dump() == {
        "hole": "random", "adversarial": 0.001, "generator_rate": 10.0, "width": 64,
    }  # fmt: skip
    recipe = run.optimizer
    assert (recipe.name, recipe.peak_lr(64), recipe.momentum, recipe.beta2) == ("adamw", 2e-4, 0.5, 0.999)
    assert (recipe.weight_decay, recipe.final_lr) == (0, 1)
    method = made()
    assert method.views == (View(crop=(0.5, 1.0), flip=0.5),)
    assert method.discriminator is not None
    slopes = [layer.negative_slope for layer in method.discriminator.modules() if isinstance(layer, nn.LeakyReLU)]
    assert set(slopes) == {0.2}

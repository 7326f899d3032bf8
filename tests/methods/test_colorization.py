"""Colorization: its loss from the formula, rare colours, and an encoder that sees luma in training and evaluation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.lab import ab_bins, lab, srgb
from eagleray.config import load_run
from eagleray.contracts.batch import Batch
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray.runs.export.encoder import used_encoder
from eagleray_methods.colorization import (
    Colorization,
    Decoder,
    annealed_mean,
    colour_loss,
    first_convolution,
    rarity,
    seen_as_luma,
    spread,
)
from method_cases import INFO, NOW, batch_of, settings, small

SMALL = ["method.width=4"]
ON_DIGITS = ["data=letters"]  # digits are grey


def ready(*more: str) -> Colorization:
    method = small("colorization", *more).train()
    assert isinstance(method, Colorization)
    return method


def photos(method: Colorization) -> Tensor:
    """Eight images of pixels in 0..1, the last without colours, as the method gets them."""
    pixels = torch.rand(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    pixels[7] = pixels[7, :1]
    return (pixels - method.mean) / method.std


def written_out(method: Colorization, images: Tensor) -> Tensor:
    """The loss, one pixel after the other: equations 2 and 4."""
    bins, uniform = ab_bins().double(), method.config.uniform
    luma = sum(
        share * s * images[:, c] for c, (share, s) in enumerate(zip((0.2126, 0.7152, 0.0722), [0.25] * 3, strict=True))
    )
    shown = torch.stack([luma / 0.25] * 3, 1)
    logits = method.decoder(method.encoder(shown))
    colours = lab(images * 0.25 + 0.5)[:, 1:]
    places = [(n, y, x) for n in range(8) for y in range(2) for x in range(2)]
    soft = {}
    for n, y, x in places:
        squares = (bins - colours[n, :, 4 * y, 4 * x]).square().sum(1)
        shares = torch.where(squares <= squares.sort().values[9], (-squares / 50).exp(), 0.0)
        soft[n, y, x] = shares / shares.sum()
    seen = torch.full((len(bins),), 1 / len(bins), dtype=torch.float64)
    for n, y, x in places:
        seen = seen + (soft[n, y, x] / 4 if n < 7 else 0)
    p = seen / seen.sum()
    weights = [1 / ((1 - uniform) * float(share) + uniform / len(bins)) for share in p]
    scale = sum(float(share) * w for share, w in zip(p, weights, strict=True))
    loss = torch.zeros((), dtype=torch.float64)
    for n, y, x in places[:28]:
        log_p = logits[n, :, y, x].log_softmax(0)
        own = weights[int(soft[n, y, x].argmax())] / scale
        loss = loss - own * (soft[n, y, x] * log_p).sum() / 32
    return loss


def test_loss_and_gradients_are_those_of_the_formula():
    method, other = ready(), ready()
    images = photos(method)
    loss = method(Batch([images], torch.arange(8)), NOW).loss
    expected = written_out(other, images)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(loss, list(method.parameters()))
    wanted = torch.autograd.grad(expected, list(other.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_printed_loss_is_weighted_as_its_gradient_is():
    """The authors' code multiplies the gradient alone, so its printed loss is another."""
    logits = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(2, 5, 3, 3, dtype=torch.float64).softmax(1)
    weights = torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0], dtype=torch.float64)
    loss = colour_loss(logits, targets, weights, torch.ones(2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, logits)
    unweighted = (logits.softmax(1) - targets).detach() / 18
    torch.testing.assert_close(gradient, unweighted * weights[targets.argmax(1)][:, None])


def test_rare_colours_weigh_more_and_the_mean_weight_of_pixels_is_one():
    shares = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
    weights = rarity(shares, 0.5)
    assert float((shares * weights).sum()) == pytest.approx(1)
    assert weights.tolist() == sorted(weights.tolist())
    assert float(weights[3] / weights[0]) == pytest.approx((0.35 + 0.125) / 0.125)
    torch.testing.assert_close(rarity(shares, 1.0), torch.ones(4, dtype=torch.float64))


def test_the_annealed_mean_lies_between_the_likeliest_colour_and_the_mean():
    bins = torch.tensor([[10.0, 0.0], [-10.0, 20.0]])
    logits = torch.tensor([0.9, 0.1]).log().view(1, 2, 1, 1)
    first = 0.9 ** (1 / 0.38) / (0.9 ** (1 / 0.38) + 0.1 ** (1 / 0.38))
    expected = torch.tensor([20 * first - 10, 20 - 20 * first]).view(1, 2, 1, 1)
    torch.testing.assert_close(annealed_mean(logits, bins), expected)


def test_images_without_colours_neither_teach_nor_count():
    method = ready()
    grey = photos(method)[7:].expand(8, 3, 8, 8)
    before = method.seen.clone()
    result = method(Batch([grey], torch.arange(8)), NOW)
    assert float(result.loss.detach()) == 0
    assert torch.equal(method.seen, before)
    assert result.metrics["coloured"] == 0
    assert float(method(Batch([photos(method)], torch.arange(8)), NOW).metrics["coloured"]) == pytest.approx(7 / 8)


def test_an_image_is_grey_up_to_five_units_of_a_or_b():
    method = ready()
    colours = torch.tensor([[60.0, 4.8, 0.0], [60.0, 5.2, 0.0], [60.0, 0.0, -4.8], [60.0, 0.0, -5.2]])
    pixels = srgb(colours.double()[:, :, None, None].expand(-1, -1, 8, 8))
    for image, coloured in zip((pixels - 0.5) / 0.25, (0, 1, 0, 1), strict=True):
        result = method(Batch([image.expand(8, -1, -1, -1)], torch.arange(8)), NOW)
        assert result.metrics["coloured"] == coloured


def test_training_images_that_differ_in_colour_alone_look_the_same_to_the_encoder():
    """What could betray the colours is planted in them, and does not reach the encoder."""
    method = ready()
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    images = photos(method)
    planted = torch.zeros_like(images)
    planted[:, 0], planted[:, 2] = 0.0722 * 0.3, -0.2126 * 0.3  # red for blue at equal luma
    for each in (images, images + planted):
        method(Batch([each], torch.arange(8)), NOW)
    torch.testing.assert_close(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[0].flip(0))


def test_a_picture_has_the_colours_that_are_predicted_and_the_lightness_of_the_image():
    method = ready("image_size=9").eval()
    with torch.no_grad():
        for p in method.decoder.layers[-1].parameters():
            p.zero_()
        method.decoder.layers[-1].bias[7] = 1e3  # type: ignore[index]
        method.bins[7] = torch.tensor([20.0, -10.0])  # a colour of sRGB at middle lightness
    pixels = srgb(torch.tensor([50.0, 10, 30], dtype=torch.float64).view(1, 3, 1, 1).expand(2, 3, 9, 9))
    made = method.picture((pixels - method.mean) / method.std)
    seen, coloured = (made[title] * method.std + method.mean for title in ("seen", "coloured"))
    luma = 0.2126 * pixels[:, 0] + 0.7152 * pixels[:, 1] + 0.0722 * pixels[:, 2]
    torch.testing.assert_close(seen, torch.stack([luma] * 3, 1))
    found = lab(coloured).flatten(2).mean(2)
    torch.testing.assert_close(found, torch.tensor([[50.0, 20, -10]] * 2, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [4, 9, 32])
def test_predicted_colours_lie_on_their_pixels_and_between_them_is_their_mean(side: int):
    colours = torch.arange(-(-side // 4), dtype=torch.float64).expand(1, 2, -(-side // 4), -1)
    columns = [min(x / 4, (side - 1) // 4) for x in range(side)]
    expected = torch.tensor(columns, dtype=torch.float64).expand(1, 2, side, side)
    torch.testing.assert_close(spread(colours, side), expected)


def one_step_later(method: Colorization) -> Colorization:
    method(batch_of(method), NOW).loss.backward()
    torch.optim.AdamW(method.parameters(), lr=0.01).step()
    method.after_step(NOW)
    return method.eval()


@pytest.mark.parametrize(
    "encoder", [[], ["encoder=resnet18", "image_size=32"], ["encoder=vit_tiny", "encoder.depth=1", "encoder.dim=32"]]
)
def test_evaluation_shows_the_encoder_what_training_does(encoder: list[str]):
    """Also where the images keep their colours: the first convolution sees luma alone, as training does."""
    more = [each for each in settings("colorization") if not encoder or "width=8" not in each]
    size = 32 if "image_size=32" in encoder else 8
    method = build_method(load_run(None, [*more, *encoder]), replace(INFO, image_size=size, std=(0.2, 0.25, 0.3)))
    assert isinstance(method, Colorization)
    method = method.double().train()
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    assert not torch.allclose(method.encode(images), method.encode(seen_as_luma(images, method.luma)))
    method = one_step_later(method)
    encoded = method.encode(images)
    torch.testing.assert_close(encoded, method.encode(seen_as_luma(images, method.luma)))
    assert used_encoder(method, images) is method.encoder  # so what is exported does the same
    assert not torch.allclose(encoded[:1], encoded[1:2])


def test_making_the_encoder_blind_changes_nothing_of_what_it_computes_on_luma():
    method = ready().eval()
    images = photos(method)
    shown = seen_as_luma(images, method.luma)
    weight = first_convolution(method.encoder).weight
    weight.data.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    before = method.encode(shown)
    assert not torch.allclose(method.encode(images), before)
    method.after_step(NOW)
    torch.testing.assert_close(method.encode(shown), before)
    torch.testing.assert_close(method.encode(images), before)


class TwoEyes(nn.Module):
    """A network with a second way to see the image."""

    dim = 4

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return (self.first(images) + self.second(images)).mean((2, 3))


def test_what_cannot_work_is_refused():
    config = ready().config
    with pytest.raises(ConfigError, match="learns from colours, and these images are grey: take colour images"):
        build_method(load_run(None, settings("colorization")), replace(INFO, channels=1, mean=(0.5,), std=(0.2,)))
    with pytest.raises(ConfigError, match="through its first convolution alone"):
        Colorization(TwoEyes(), config, INFO)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("side", [1, 2, 3, 8, 9, 56])
def test_the_decoder_has_a_logit_for_each_bin_and_predicted_pixel(side: int):
    assert Decoder(6, 2, 5, side)(torch.randn(3, 6)).shape == (3, 5, side, side)


def test_the_papers_recipe_is_that_of_the_authors_code():
    """Adam at 3e-5 for 40 images, a tenth of it every 225,000 of 500,000 steps."""
    run = load_run(None, ["method=colorization", "recipe=paper", "batch_size=40"])
    recipe = run.optimizer
    assert recipe.peak_lr(40) == 3e-5
    assert [drop * 500_000 for drop in recipe.drops] == pytest.approx([225_000, 450_000])
    assert (recipe.beta2, recipe.weight_decay, run.steps) == (0.99, 1e-3, 500_000)
    assert ready().views == (View(crop=(0.47, 1.0), flip=0.5),)  # 176 of 256 pixels

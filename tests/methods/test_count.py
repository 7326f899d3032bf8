"""Learning to count: the loss as printed, quarters and halves, and the kernels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.count import Count, terms
from gradients import assert_same_gradients, with_gradients
from method_cases import BATCH, INFO, NOW, batch_of, small

SMALLER = replace(INFO, image_size=12)
SMALL = ["image_size=16", "method.counts=6", "method.hidden=8", "method.margin=0.2"]


def count(*more: str) -> Count:
    method = small("count", *more)
    assert isinstance(method, Count)
    return method


def slowly(whole: Tensor, parts: Tensor, other: Tensor, margin: float) -> Tensor:
    """Equation 5, one image and one count after the other."""
    losses = []
    for w, p, o in zip(whole, parts, other, strict=True):
        own = torch.stack([(w[k] - p[k]) ** 2 for k in range(len(w))]).sum()
        far = torch.stack([(o[k] - p[k]) ** 2 for k in range(len(w))]).sum()
        losses.append(own + (margin - far if far < margin else 0.0))
    return torch.stack(losses).mean()


def test_the_loss_is_the_papers_formula():
    draw = torch.Generator().manual_seed(0)
    vectors = [torch.rand(5, 4, dtype=torch.float64, generator=draw) * scale for scale in (1, 2, 1)]
    margin = float((vectors[2] - vectors[1]).square().sum(1).median()) + 0.1
    whole, parts, other = vectors
    found = with_gradients(lambda w, p, o: torch.stack(terms(w, p, o, margin)).sum(0).mean(), whole, parts, other)
    torch.testing.assert_close(found, with_gradients(lambda w, p, o: slowly(w, p, o, margin), whole, parts, other))
    hinge = terms(whole, parts, other, margin)[1]
    assert 0 < int((hinge > 0).sum()) < 5  # on both sides of the margin


def test_the_hinge_is_of_the_whole_vector():
    """The reimplementation's hinge of each count would be margin - 1 for every one of these."""
    far = torch.ones(1, 4)
    assert terms(far, torch.zeros(1, 4), far, 3.0)[1].tolist() == [0.0]
    assert terms(far, torch.zeros(1, 4), far, 5.0)[1].tolist() == [1.0]


def test_counts_of_quarters_add_up_and_the_other_image_is_the_one_before():
    """Halved images and quarters go through the network together."""
    method = count()
    batch = batch_of(method)
    images = batch.views[0].requires_grad_()
    draw = method.rng(NOW.step)
    drawn = torch.randint(4, (BATCH,), generator=draw).tolist()
    loses_colour = torch.rand(BATCH, generator=draw) < 0.66
    channels = torch.randint(3, (BATCH,), generator=draw).tolist()
    assert 0 < int(loses_colour.sum()) < BATCH
    shown = [
        torch.stack([image[channel]] * 3) if is_grey else image
        for image, is_grey, channel in zip(images, loses_colour, channels, strict=True)
    ]
    halved = [method.kernels[k] @ image @ method.kernels[k].T for image, k in zip(shown, drawn, strict=True)]
    corners = [(slice(a, a + 8), slice(b, b + 8)) for a in (0, 8) for b in (0, 8)]
    quarters = [image[:, a, b] for image in shown for a, b in corners]
    counted = method.counter(method.encoder(torch.stack([*halved, *quarters]))).relu()
    whole, parts = counted[:BATCH], torch.stack([own.sum(0) for own in counted[BATCH:].split(4)])
    other = torch.stack([whole[number - 1] for number in range(BATCH)])
    near = (other - parts).detach().square().sum(1)
    margin = float(near.median()) + 1e-9  # half of the images are within it
    method.config = method.config.model_copy(update={"margin": margin})
    result = method(batch, NOW)
    assert_same_gradients(result.loss, slowly(whole, parts, other, margin), images, *method.parameters())
    assert float(result.metrics["active"]) == 0.5
    used = [any(float(image[k]) > 0 for image in whole.detach()) for k in range(whole.shape[1])]
    assert float(result.metrics["used"]) == sum(used) / len(used)
    assert float(result.metrics["count"]) == pytest.approx(float(whole.detach().mean()))
    assert float(result.metrics["error"]) == pytest.approx(float((whole - parts).square().sum(1).detach().mean()))


def test_counting_nothing_is_the_trivial_solution_and_is_seen():
    method = count()
    last = list(method.counter.children())[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(-1.0)
        result = method(batch_of(method), NOW)
    assert float(result.loss) == pytest.approx(0.2)  # the margin
    assert [float(result.metrics[name]) for name in ("count", "error", "active")] == [0.0, 0.0, 1.0]


def test_images_are_halved_by_four_kernels_each_as_often():
    """A single one leaves its mark in every halved image and in no quarter (tests/methods/test_shortcuts.py)."""
    method = count()
    image = torch.rand(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    halves = [kernel @ image @ kernel.T for kernel in method.kernels]
    assert min(float((a - b).abs().max()) for a in halves for b in halves if a is not b) > 0.01
    torch.testing.assert_close(halves[2], F.avg_pool2d(image[None, None], 2)[0, 0])
    drawn = torch.cat([torch.randint(4, (BATCH,), generator=method.rng(step)) for step in range(200)])
    assert (drawn.bincount() / len(drawn)).tolist() == pytest.approx([0.25] * 4, abs=0.04)


def test_each_step_draws_kernels_of_its_own():
    method = count()
    losses = [
        float(method.eval()(batch_of(method), Progress(step=step, steps=10, epoch=0, epochs=1)).loss.detach())
        for step in (3, 3, 4)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_an_odd_image_is_halved_without_its_last_line():
    method = count("image_size=17")
    assert method.tile_size == 8
    assert method(batch_of(method), NOW).loss.isfinite()


def test_quarters_that_patches_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"^image_size=12 gives tiles of 6 pixels, which patches of 4 pixels do not"):
        build_method(load_run(None, ["method=count", "encoder=vit_tiny", "encoder.patch_size=4"]), SMALLER)


def test_the_papers_settings():
    """A thousand counts, a margin of 10, two thirds of the images in one channel; layers of 4096; Adam at 1e-4."""
    run = load_run(None, ["method=count", "recipe=paper"])
    assert run.method.config.model_dump() == {"margin": 10.0, "counts": 1000, "one_channel": 0.66, "hidden": 4096}
    assert (run.optimizer.name, run.optimizer.peak_lr(512)) == ("adamw", 1e-4)
    assert count().views == (View(crop=(0.5, 1.0), flip=0.5),)

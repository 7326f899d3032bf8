"""MMCR against lightly's loss, where its least value is known, and across workers."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray.blocks.optimizers import make_optimizer
from eagleray.config import load_run
from eagleray.runs.method_checks import built
from eagleray_methods.mmcr import mmcr
from gradients import assert_two_are_one, of_own_part, with_gradients
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.projection=6"]


def embeddings(views: int = 4, count: int = 12, width: int = 6) -> Tensor:
    """Views of images, whose later half is unlike the earlier one."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(count, width, dtype=torch.float64, generator=draw)
    images[count // 2 :] = images[count // 2 :] * 2 + 0.5
    return images + 0.3 * torch.randn(views, count, width, dtype=torch.float64, generator=draw)


def loss(z: Tensor) -> Tensor:
    return mmcr(F.normalize(z, dim=-1))


@pytest.mark.parametrize("width", [6, 20])
def test_the_loss_is_lightlys_by_the_images(width: int):
    """Lightly takes two groups of views, and sums over the images."""
    from lightly.loss import MMCRLoss

    def theirs(z: Tensor) -> Tensor:
        online, momentum = F.normalize(z, dim=-1).transpose(0, 1).split(2, dim=1)
        return MMCRLoss(lmda=0)(online, momentum) / 12

    z = embeddings(width=width)
    torch.testing.assert_close(with_gradients(loss, z), with_gradients(theirs, z), rtol=1e-9, atol=1e-11)


def test_the_loss_is_the_trace_of_the_root_of_the_means_products():
    z = F.normalize(embeddings(), dim=-1)
    means = sum(z.unbind()) / 4
    assert isinstance(means, Tensor)
    values = torch.linalg.eigvalsh(means.T @ means).clamp(min=0).sqrt()
    torch.testing.assert_close(mmcr(z), -values.sum() / 12)


def test_the_least_value_is_that_of_equal_views_in_every_direction():
    """N images, evenly along D directions: singular values sqrt(N / D), D of them."""
    even = torch.eye(6, dtype=torch.float64).repeat(2, 1)  # 12 images
    together = even.expand(4, -1, -1)
    assert float(mmcr(together)) == pytest.approx(-math.sqrt(6 / 12))
    apart = torch.stack([even, even.roll(1, 1)])  # views that disagree
    one_point = even[:1].expand(4, 12, -1)  # views that agree, of images that are all alike
    assert float(mmcr(apart)) > float(mmcr(together)) + 0.1
    assert float(mmcr(one_point)) == pytest.approx(-math.sqrt(12) / 12)


def test_the_step_reports_how_views_agree():
    method = small("mmcr", "method.views=4")
    batch = batch_of(method)
    result = method(batch, NOW)
    z = torch.stack(result.embeddings)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4, 8, dtype=torch.float64))
    torch.testing.assert_close(result.loss.detach(), mmcr(z))
    assert float(result.metrics["agreement"]) == pytest.approx(float(z.mean(0).norm(dim=-1).mean()))
    batch.views[:] = [batch.views[0]] * 4
    assert float(method(batch, NOW).metrics["agreement"]) == pytest.approx(1)


def halves(z: Tensor) -> list[Tensor]:
    return of_own_part(lambda rows: loss(rows.transpose(0, 1)), z.transpose(0, 1))


@pytest.mark.slow
def test_two_workers_get_the_loss_and_gradient_of_one():
    assert_two_are_one(halves, embeddings())


def test_the_papers_recipe_is_that_of_the_authors_imagenet_runs():
    run = load_run(None, ["method=mmcr", "recipe=paper", "batch_size=2048"])
    assert (run.optimizer.name, run.optimizer.peak_lr(2048), run.optimizer.weight_decay) == ("lars", 4.8, 1e-6)


def test_to_divide_by_the_images_changes_the_steps_of_lars_in_vectors_alone():
    run = load_run(None, ["method=mmcr", "encoder.width=8", "recipe=paper", *SMALL])

    def steps(times: float) -> dict[str, Tensor]:
        method = built(run)
        before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
        optimizer = make_optimizer(method, run.optimizer)
        (times * method(batch_of(method), NOW).loss).backward()
        optimizer.step()
        return {name: parameter.detach() - before[name] for name, parameter in method.named_parameters()}

    for (name, once), large in zip(steps(1).items(), steps(8).values(), strict=True):
        times = 1 if once.ndim > 1 else 8
        torch.testing.assert_close(large, times * once, rtol=1e-6, atol=1e-12, msg=name)

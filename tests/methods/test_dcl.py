"""DCL and DCLW against their formula, against lightly, and across workers."""

import pytest
import torch
from torch import Tensor

from eagleray.blocks.losses import nt_xent
from eagleray_methods.dcl import DCL, decoupled_loss
from gradients import assert_two_are_one, of_own_part, with_gradients
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16"]
SIGMAS = pytest.mark.parametrize("sigma", [None, 0.5], ids=["dcl", "dclw"])


def pair(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two views; the later half of the images unlike the earlier one."""
    draw = torch.Generator().manual_seed(5)
    first = torch.randn(count, 6, dtype=dtype, generator=draw)
    first[count // 2 :] = first[count // 2 :] * 3 + 1
    return first, first + 0.8 * torch.randn(count, 6, dtype=dtype, generator=draw)


def equation_six(first: Tensor, second: Tensor, temperature: float, sigma: float | None) -> Tensor:
    """Equation 6, anchor by anchor, with the weights of section 3.3."""
    views = [[row / row.norm() for row in view] for view in (first, second)]
    count = len(first)
    closeness = [(a @ b / (sigma or 1)).exp().detach() for a, b in zip(*views, strict=True)]
    loss = first.new_zeros(())
    for i in range(count):
        weight = 1.0 if sigma is None else 2 - closeness[i] / (sum(closeness) / count)
        for anchors, others in (views, views[::-1]):
            negatives = [views[v][k] for v in (0, 1) for k in range(count) if k != i]
            apart = sum((anchors[i] @ z / temperature).exp() for z in negatives)
            loss = loss - weight * (anchors[i] @ others[i]) / temperature + torch.log(torch.as_tensor(apart))
    return loss / (2 * count)


@SIGMAS
def test_decoupled_loss_is_equation_six(sigma: float | None):
    ours = with_gradients(lambda a, b: decoupled_loss(a, b, 0.2, sigma), *pair(5))
    paper = with_gradients(lambda a, b: equation_six(a, b, 0.2, sigma), *pair(5))
    torch.testing.assert_close(ours, paper, rtol=1e-10, atol=1e-10)


@SIGMAS
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # lightly's, in its weights
def test_decoupled_loss_is_lightlys(sigma: float | None):
    from lightly.loss import DCLLoss, DCLWLoss  # here: the two processes import this file too, and lightly is slow

    theirs_of = DCLLoss(temperature=0.1) if sigma is None else DCLWLoss(temperature=0.1, sigma=sigma)
    ours = with_gradients(lambda a, b: decoupled_loss(a, b, 0.1, sigma), *pair(24, torch.float32))
    theirs = with_gradients(theirs_of, *pair(24, torch.float32))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def own_part(sigma: float | None) -> list[Tensor]:
    return of_own_part(lambda a, b: decoupled_loss(a, b, 0.2, sigma), *pair(6))


@pytest.mark.slow
@SIGMAS
def test_two_workers_compute_the_loss_of_one(sigma: float | None):
    assert_two_are_one(own_part, sigma)


@SIGMAS
def test_decoupled_loss_does_not_mind_order_of_views_scale_or_order_of_images(sigma: float | None):
    first, second = pair(7)
    loss, order = decoupled_loss(first, second, 0.2, sigma), torch.randperm(7)
    torch.testing.assert_close(decoupled_loss(second, 3 * first, 0.2, sigma), loss)
    torch.testing.assert_close(decoupled_loss(first[order], second[order], 0.2, sigma), loss)
    assert decoupled_loss(first, second.roll(1, 0), 0.2, sigma) > loss + 0.1


def test_the_positive_is_what_leaves_simclrs_denominator():
    same = pair(4)[0][:1].repeat(2, 1)  # two images that look alike: one positive, and two negatives as near
    difference = nt_xent(same, same, 0.2) - decoupled_loss(same, same, 0.2)
    torch.testing.assert_close(difference, torch.tensor(1.5, dtype=torch.float64).log())


@SIGMAS
def test_decoupled_loss_is_float32_inside_bf16_autocast(sigma: float | None):
    first, second = pair(16, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = decoupled_loss(first, second, 0.1, sigma)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, decoupled_loss(first.float(), second.float(), 0.1, sigma))


@pytest.mark.parametrize(("temperature", "sigma"), [(0.1, None), (0.3, 0.7)], ids=["dcl", "dclw"])
def test_the_step_is_equation_six_of_both_views_in_one_pass(temperature: float, sigma: float | None):
    weights = ["method.weighted=true", f"method.sigma={sigma}"] if sigma else []
    method = small("dcl", f"method.temperature={temperature}", *weights).train()
    assert isinstance(method, DCL)
    linear, norm = torch.nn.Linear, torch.nn.BatchNorm1d
    assert [type(layer) for layer in method.projector] == [linear, norm, torch.nn.ReLU, linear, norm]  # SimCLR's
    batch = batch_of(method)
    first, second = method.projector(method.encoder(torch.cat(batch.views))).chunk(2)
    expected = equation_six(first, second, temperature, sigma)
    result = method(batch, NOW)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.embeddings, [first.detach(), second.detach()])
    gradients = (torch.autograd.grad(loss, list(method.parameters())) for loss in (result.loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)

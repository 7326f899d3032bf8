"""SimCLR: its step against lightly's loss behind a head written out; the loss alone is held in test_losses.py."""

import pytest
import torch
from torch import Tensor, nn

from eagleray_methods.simclr import SimCLR
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16"]


def head(features: Tensor, projector: nn.Module) -> Tensor:
    """Appendix B.9: linear, norm, ReLU, linear, norm, with the statistics of all rows given."""
    first, scale, shift, second, last_scale, last_shift = projector.parameters()
    hidden = (standardised(features @ first.T) * scale + shift).clamp(min=0)
    return standardised(hidden @ second.T) * last_scale + last_shift


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_step_is_lightlys_loss_of_both_views_in_one_pass(temperature: float):
    from lightly.loss import NTXentLoss

    method = small("simclr", f"method.temperature={temperature}").train()
    assert isinstance(method, SimCLR)
    draw = torch.Generator().manual_seed(2)
    for p in method.projector.parameters():  # so that no scale is 1 and no shift is 0
        p.data.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=draw))
    batch = batch_of(method)
    both = head(method.encoder(torch.cat(batch.views)), method.projector)
    expected = NTXentLoss(temperature=temperature)(*both.chunk(2))
    result = method(batch, NOW)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.embeddings, list(both.detach().chunk(2)))
    parameters = list(method.parameters())
    gradients = (torch.autograd.grad(loss, parameters) for loss in (result.loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)

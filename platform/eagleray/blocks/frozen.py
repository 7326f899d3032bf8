"""Calls that leave something of a module alone: its running statistics, or its parameters' gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let every batch norm in `module` normalise by the batch as in training, and keep its running statistics.

    For a pass beside the one that evaluation should be like: an adversarial direction (Miyato et al. 2017,
    https://arxiv.org/abs/1704.03976), unlabelled images. Evaluation mode would normalise by other numbers.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def as_constant(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Return `module(*inputs)`, its parameters taken as constants: the gradient reaches the inputs alone.

    So two players train on one loss and one backward pass, a discriminator D and a generator G:
    `loss_d(D(real), D(fake.detach())) + loss_g(as_constant(D, fake))`.
    """
    return functional_call(module, {name: p.detach() for name, p in module.named_parameters()}, inputs)

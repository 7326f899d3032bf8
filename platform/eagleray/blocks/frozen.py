"""Forward passes that leave statistics or parameters alone.

One keeps a module's running statistics, the other sends no gradient to its parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of `module`'s batch norms.

    They still normalise by the batch. For an extra pass whose images should not influence evaluation: an adversarial
    direction (Miyato et al. 2017, https://arxiv.org/abs/1704.03976), unlabelled images. Evaluation mode would normalise
    by other statistics.
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
    """Call a module with its parameters as constants.

    The gradient reaches only the inputs. With it two players, a discriminator D and a generator G, train on one loss
    and in one backward pass: `loss_d(D(real), D(fake.detach())) + loss_g(as_constant(D, fake))`.
    """
    return functional_call(module, {name: p.detach() for name, p in module.named_parameters()}, inputs)

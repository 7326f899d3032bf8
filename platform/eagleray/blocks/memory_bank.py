"""A bank of one vector for each training image, and the noise-contrastive loss that distinguishes them.

Wu, Xiong, Yu, Lin 2018 (NPID), https://arxiv.org/abs/1805.01978
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.blocks.distributed import all_reduce_mean, gather


class MemoryBank(nn.Module):
    """The newest vector of each training image, at length 1; it is saved in checkpoints.

    It starts with random directions. A vector lies at its image's index: so the distribution of images over workers
    makes no difference.
    """

    rows: Tensor

    def __init__(self, samples: int, dim: int):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(samples, dim), dim=1))
        self.constant = 0.0  # Z of equation 4; 0: not estimated yet

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.constant, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.constant = float(state)

    def contrast(
        self, vectors: Tensor, indices: Tensor, negatives: int, temperature: float, generator: torch.Generator
    ) -> Tensor:
        """Compute the noise-contrastive loss of images, and estimate its constant from the first of all.

        Args:
            vectors, indices: of the images, [n, dim], normalised, and [n].
            negatives: noise images, shared by the step.
            temperature: T of `nce`.
            generator: draws the noise, the same on all workers.
        """
        drawn = torch.randint(len(self.rows), (negatives,), generator=generator)
        noise = self.rows[drawn.to(vectors.device, non_blocking=True)]
        if not self.constant:
            self.constant = float(all_reduce_mean(self._estimate(vectors.detach(), noise, temperature)))
        return nce(vectors, self.rows[indices], noise, self.constant, temperature, len(self.rows))

    @torch.no_grad()
    def remember(self, vectors: Tensor, indices: Tensor, momentum: float) -> None:
        """Store all workers' vectors in each worker's bank.

        New vector = momentum * old + (1 - momentum) * given, normalised.
        """
        mixed = self.rows[indices].lerp(vectors, 1 - momentum)
        self.rows[gather(indices)] = gather(F.normalize(mixed, dim=1))

    def _estimate(self, vectors: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Estimate the normalising constant from noise (equation 8).

        It normalises the similarities to all images. In float64, where low temperatures do not overflow.
        """
        return len(self.rows) * (vectors @ noise.T / temperature).double().exp().mean()


def nce(vectors: Tensor, previous: Tensor, noise: Tensor, constant: float, temperature: float, samples: int) -> Tensor:
    """Compute the noise-contrastive loss (equations 4 to 7).

    It separates the image from noise, which is drawn evenly from all n images:

        h(i, v) = P(i|v) / (P(i|v) + m / n),    P(i|v) = exp(v_i·v / T) / Z
        loss = -log h(i, v) - sum over the m noise images j of log(1 - h(j, v))

    Args:
        vectors: the current vectors of the images, [N, D], normalised.
        previous: the bank's vectors of the same images, [N, D].
        noise: the bank's vectors of the m drawn images, [m, D].
        constant: Z above.
        temperature: T above.
        samples: n above.

    Returns:
        The mean over the N images.
    """
    # h is the logistic function of v_i·v / T - log(Z m / n).
    shift = math.log(constant * len(noise) / samples)
    positive = (vectors * previous).sum(1) / temperature - shift  # [N]
    negative = vectors @ noise.T / temperature - shift  # [N, m]
    return (F.softplus(-positive) + F.softplus(negative).sum(1)).mean()

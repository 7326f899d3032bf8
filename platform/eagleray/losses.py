"""Losses that two or more methods use: pure functions, each with its paper's equation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.distributed import gather, rank

BLOCK = 2**21  # similarities formed at a time: 8 MB in float32, about what a core's cache serves


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's normalised temperature-scaled cross entropy, over the batches of all workers.

    With z the L2-normalised embeddings of both views, and i and j the two views of one image (eq. 1):

        loss(i, j) = -log( exp(z_i·z_j / T) / sum over k != i of exp(z_i·z_k / T) )

    averaged over this worker's 2n anchors; k runs over the 2N embeddings of every worker. No 2N x 2N matrix
    is ever held, and inside a bf16 autocast the loss is still computed in float32.

    Args:
        first, second: [n, D] embeddings of the two views of the same n images, not normalised.
        temperature: T above.

    Returns:
        A scalar, float32 (float64 for float64 embeddings).

    Source: Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations,
    https://arxiv.org/abs/2002.05709
    """
    with torch.autocast(first.device.type, enabled=False):
        anchors = _normalised(torch.cat([first, second]))  # [2n, D]
        return _NTXent.apply(anchors, gather(anchors), temperature)  # type: ignore[return-value]


class _NTXent(torch.autograd.Function):
    """Loss of anchors [2n, D] among candidates [2N, D], rank by rank; first views, then second."""

    @staticmethod
    def forward(ctx, anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
        count = len(anchors)
        index = torch.arange(count, device=anchors.device)
        own = index + rank() * count
        positive = (index + count // 2) % count + rank() * count
        # The gradient is formed here, block by block, while the similarities are at hand.
        anchor_gradient = torch.empty_like(anchors)
        candidate_gradient = torch.zeros_like(candidates)
        loss = anchors.new_zeros(())
        for rows in index.split(max(1, BLOCK // len(candidates))):
            block = anchors[rows] / temperature
            scores = block @ candidates.T  # [rows, 2N]
            scores.scatter_(1, own[rows, None], -torch.inf)
            positive_scores = scores.gather(1, positive[rows, None])
            top = scores.amax(1, keepdim=True)
            total = scores.sub_(top).exp_().sum(1, keepdim=True)
            loss += (total.log() + top - positive_scores).sum()
            # d loss / d scores = exp(scores - top) / total - one_hot(positive); the rows are divided by their
            # totals where they are shorter, in the gradient and the block.
            scores.scatter_add_(1, positive[rows, None], -total)
            anchor_gradient[rows] = (scores @ candidates) / total
            candidate_gradient.addmm_(scores.T, block / total)
        ctx.save_for_backward(anchor_gradient.div_(temperature * count), candidate_gradient.div_(count))
        return loss / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        anchor_gradient, candidate_gradient = ctx.saved_tensors
        return anchor_gradient * gradient, candidate_gradient * gradient, None


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's regression loss: squared distance of the normalised vectors, averaged over the batch (eq. 2).

        loss = ‖ p/‖p‖ - z/‖z‖ ‖² = 2 - 2 cos(p, z)

    BYOL SUMS this over both directions of its two views. Where the target is a teacher's, detach it before.

    Args:
        prediction, target: [n, D], not normalised.

    Returns:
        A scalar from 0 to 4, float32 even inside a bf16 autocast (float64 for float64 embeddings).

    Source: Grill et al. 2020, Bootstrap Your Own Latent, https://arxiv.org/abs/2006.07733
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return 2 - 2 * (_normalised(prediction) * _normalised(target)).sum(1).mean()


def _normalised(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least: bf16 has three digits, too few for a difference of cosines."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)

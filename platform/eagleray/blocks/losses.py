"""Losses that two or more methods use.

Pure functions, each with its paper's equation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.blocks.distributed import all_reduce_sum, gather, rank, world_size

BLOCK = 2**21  # similarities computed at a time: 8 MB in float32, about the size of a core's cache


def nt_xent(first: Tensor, second: Tensor, temperature: float, negatives: Tensor | None = None) -> Tensor:
    """Compute SimCLR's contrastive loss.

    The normalised temperature-scaled cross-entropy, over the batches of all workers. With z the L2-normalised
    embeddings of both views, and i and j the two views of one image (eq. 1):

        loss(i, j) = -log( exp(z_i·z_j / T) / sum over k != i of exp(z_i·z_k / T) )

    averaged over this worker's 2n anchors; k runs over the 2N embeddings of all workers. The 2N x 2N matrix is
    never stored, and inside a bf16 autocast the loss is still computed in float32.

    Args:
        first, second: [n, D] embeddings of the two views of the same n images, not normalised.
        temperature: T above.
        negatives: [K, D] rows of a queue, the same on every worker, over which k runs too (SimCLR v2's memory); no
            gradient passes through them, and the queue may be overwritten before the backward pass.

    Returns:
        A scalar, float32 (float64 for float64 embeddings).

    Source: Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations,
    https://arxiv.org/abs/2002.05709
    """
    with torch.autocast(first.device.type, enabled=False):
        anchors = normalised(torch.cat([first, second]))  # [2n, D]
        stale = anchors[:0] if negatives is None else normalised(negatives.detach()).to(anchors.dtype)
        return _NTXent.apply(anchors, gather(anchors), stale, temperature)  # type: ignore[return-value]


class _NTXent(torch.autograd.Function):
    """NT-Xent of anchors [2n, D] among candidates [2N, D].

    Candidates are in the order of ranks, first views, then second; stale ones come last.
    """

    @staticmethod
    def forward(ctx, anchors: Tensor, candidates: Tensor, stale: Tensor, temperature: float) -> Tensor:
        count, fresh = len(anchors), len(candidates)
        everyone = torch.cat([candidates, stale]) if len(stale) else candidates
        index = torch.arange(count, device=anchors.device)
        own = index + rank() * count
        positive = (index + count // 2) % count + rank() * count
        # The gradient is computed here, block by block, while the similarities are available.
        anchor_gradient = torch.empty_like(anchors)
        candidate_gradient = torch.zeros_like(candidates)
        loss = anchors.new_zeros(())
        for rows in index.split(max(1, BLOCK // len(everyone))):
            block = anchors[rows] / temperature
            scores = block @ everyone.T  # [rows, 2N + K]
            scores.scatter_(1, own[rows, None], -torch.inf)
            positive_scores = scores.gather(1, positive[rows, None])
            top = scores.amax(1, keepdim=True)
            total = scores.sub_(top).exp_().sum(1, keepdim=True)
            loss += (total.log() + top - positive_scores).sum()
            # d loss / d scores = exp(scores - top) / total - one_hot(positive); the division by the totals is
            # applied to the gradient and the block, which have shorter rows.
            scores.scatter_add_(1, positive[rows, None], -total)
            anchor_gradient[rows] = (scores @ everyone) / total
            candidate_gradient.addmm_(scores[:, :fresh].T, block / total)
        ctx.save_for_backward(anchor_gradient.div_(temperature * count), candidate_gradient.div_(count))
        return loss / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        anchor_gradient, candidate_gradient = ctx.saved_tensors
        return anchor_gradient * gradient, candidate_gradient * gradient, None, None


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute BYOL's regression loss (eq. 2).

    The squared distance of normalised vectors, averaged over the batch:

        loss = ‖ p/‖p‖ - z/‖z‖ ‖² = 2 - 2 cos(p, z)

    BYOL SUMS this over both directions of its two views. Detach the target first if it comes from a teacher.

    Args:
        prediction, target: [n, D], not normalised.

    Returns:
        A scalar from 0 to 4, float32 even inside a bf16 autocast (float64 for float64 embeddings).

    Source: Grill et al. 2020, Bootstrap Your Own Latent, https://arxiv.org/abs/2006.07733
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return 2 - 2 * (normalised(prediction) * normalised(target)).sum(1).mean()


def info_nce(anchors: Tensor, positives: Tensor, temperature: float, negatives: Tensor | None = None) -> Tensor:
    """Compute InfoNCE: anchors find positives among negatives.

    With q, k and n the L2-normalised anchors, positives and negatives (MoCo's eq. 1):

        loss(i) = -log( exp(q_i·k_i / T) / (exp(q_i·k_i / T) + sum over j of exp(q_i·n_j / T)) )

    averaged over this worker's anchors. Without `negatives`, the negatives are the positives of all other anchors
    of all workers, with gradient.

    Args:
        anchors, positives: [n, D], not normalised, row i of one belongs to row i of the other.
        temperature: T above.
        negatives: [K, D] rows of a queue, the same on every worker. They are copied before use, so the queue may be
            overwritten before the backward pass.

    Returns:
        A scalar, float32 (float64 for float64 embeddings).

    Source: van den Oord et al. 2018, https://arxiv.org/abs/1807.03748; with a queue, He et al. 2019, Momentum Contrast
    for Unsupervised Visual Representation Learning, https://arxiv.org/abs/1911.05722
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positives = normalised(anchors), normalised(positives)
        index = torch.arange(len(anchors), device=anchors.device)
        if negatives is None:
            scores, positive = anchors @ gather(positives).T, index + rank() * len(anchors)  # [n, N]
        else:
            own = (anchors * positives).sum(1, keepdim=True)
            scores, positive = torch.cat([own, anchors @ normalised(negatives).T], 1), index * 0  # [n, 1 + K]
        return F.cross_entropy(scores / temperature, positive)


def squared_norm_of_product(first: Tensor, second: Tensor) -> Tensor:
    """Compute ‖AᵀB‖² over the rows of all workers.

    This is the squared Frobenius norm. It uses either the D x D matrix AᵀB itself, or two N x N matrices of inner
    products of rows, whichever is smaller, as ‖AᵀB‖² is the sum of all elements of AAᵀ * BBᵀ. For N = 256 and D = 8192
    that needs a thousand times less memory and saves most of the time.

    Args:
        first, second: [n, D], one row per image; pass the same tensor twice for ‖AᵀA‖².

    Returns:
        A scalar, the same on every worker.

    Used for the cross-correlation of Barlow Twins (2103.03230) and the covariance of VICReg (2105.04906).
    """
    rows, width = len(first) * world_size(), first.shape[1]
    if rows * (1 if second is first else 2) > width:
        return all_reduce_sum(first.T @ second).square().sum()
    products = first @ gather(first).T  # [n, N]: each worker has its rows of the whole
    others = products if second is first else second @ gather(second).T
    return all_reduce_sum((products * others).sum())


def cross_view_loss(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy between different views.

    Each view's prediction is compared with the targets of every OTHER view:

        loss = mean over t != v of H(targets_t, softmax(logits_v / T))

    With codes as targets it is SwAV's swapped prediction (2006.09882, equations 1 and 6), with a teacher's
    probabilities DINO's loss (2104.14294, equation 3), both over multi-crop's pairs.

    Args:
        targets: [t, n, K], probabilities of the first t views, without gradient.
        logits: [v, n, K] of all views, t <= v.
        temperature: T above.

    Returns:
        A scalar, float32 even inside a bf16 autocast (float64 for float64 logits).
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_p = (precise(logits) / temperature).log_softmax(-1)
        pairs = -torch.einsum("tnk,vnk->tv", targets.to(log_p.dtype), log_p) / logits.shape[1]
        other = 1 - torch.eye(len(targets), len(logits), dtype=log_p.dtype, device=log_p.device)
        return (pairs * other).sum() / (len(targets) * (len(logits) - 1))


def normalised(x: Tensor) -> Tensor:
    """Normalise rows to length 1.

    [..., D] -> the same shape, in float32 at least.
    """
    return F.normalize(precise(x), dim=-1)


def squared_error(images: Tensor, others: Tensor) -> Tensor:
    """Return each image's squared difference from another, averaged over its numbers: [N, ...] -> [N]."""
    return (precise(images) - precise(others)).square().flatten(1).mean(1)


def precise(x: Tensor) -> Tensor:
    """Convert to float32 at least.

    bf16's three digits are too few for differences of cosines or for a low T.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))

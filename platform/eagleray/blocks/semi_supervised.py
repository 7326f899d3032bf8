"""What semi-supervised methods are made of: guesses, ramps, mixtures and losses between predictions.

Logits are [N, classes]. Losses are computed in float32 at least, even inside a bf16 autocast; those of single images
are [N], so that a method decides which images count.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.blocks.distributed import all_reduce_mean, gather, own_rows, rank
from eagleray.blocks.frozen import frozen_statistics
from eagleray.blocks.losses import precise
from eagleray.blocks.networks import copy_buffers, ema_update
from eagleray.contracts.seeds import numpy_generator


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Make predictions more certain: p_k^(1/T), normalised (Berthelot et al. 2019, 1905.02249, equation 7)."""
    # By logarithms: the powers of a low temperature would underflow.
    return (probabilities.log() / temperature).softmax(1)


def entropy(logits: Tensor) -> Tensor:
    """Return each prediction's entropy in nats, [N]."""
    logs = precise(logits).log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def divergence(targets: Tensor, logits: Tensor) -> Tensor:
    """Return each image's KL(targets || prediction), [N].

    Args:
        targets: logits; no gradient passes through them.
        logits: of the predictions that learn.
    """
    logs = precise(targets.detach()).log_softmax(1)
    return (logs.exp() * (logs - precise(logits).log_softmax(1))).sum(1)


def cross_entropy_with(targets: Tensor, logits: Tensor) -> Tensor:
    """Return each image's cross-entropy with given probabilities, [N]; no gradient passes through `targets`."""
    return -(targets.detach() * precise(logits).log_softmax(1)).sum(1)


def squared_difference(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared difference of two predictions, averaged over classes, [N].

    Args:
        first, second: probabilities; the gradient passes through both, so detach those of a teacher.
    """
    return (first - second).square().mean(1)


def guesses(logits: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return pseudo-labels, and 1 where their confidence reaches `threshold`, else 0.

    Args:
        logits: of the predictions that guess.
        threshold: one for all, or one for each class, [classes], of which the guessed class's applies.

    Returns:
        int64 [N] and float [N], without gradient.
    """
    confidence, guess = precise(logits.detach()).softmax(1).max(1)
    least = threshold[guess] if isinstance(threshold, Tensor) else threshold
    return guess, (confidence >= least).to(confidence.dtype)


def pseudo_label_loss(guessed: Tensor, logits: Tensor, counts: Tensor) -> Tensor:
    """Compute the cross-entropy with pseudo-labels, averaged over ALL images (FixMatch, 2001.07685, equation 4).

    Args:
        guessed: int64 [N].
        logits: of the predictions that learn.
        counts: weight of each image, [N]; 0: it does not count.
    """
    return (F.cross_entropy(precise(logits), guessed, reduction="none") * counts).mean()


def sigmoid_ramp(fraction: float) -> float:
    """Rise from e^-5 to 1 by exp(-5 (1 - t)^2), then stay (Laine and Aila 2017, 1610.02242, section 2.1).

    `fraction` is t, the share of the ramp that is done.
    """
    return math.exp(-5 * (1 - min(1.0, fraction)) ** 2)


def linear_ramp(fraction: float) -> float:
    """Rise linearly from 0 to 1, then stay; `fraction` is the share of the ramp that is done."""
    return min(1.0, fraction)


def mixed(x: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Mix images or predictions with others: share x + (1 - share) partner (Zhang et al. 2018, 1710.09412).

    Args:
        x, partner: [N, ...].
        share: of `x`, one for each image, [N].
    """
    share = share.to(x).view(-1, *[1] * (x.dim() - 1))
    return share * x + (1 - share) * partner


def beta_shares(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw Beta(alpha, alpha) for each image, the larger of it and its complement, float64 [count] on the CPU.

    So that a mixture is nearer to its first image (1905.02249, equations 8 and 9).
    """
    # By numpy: torch's own gamma distribution takes no generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    share = torch.from_numpy(numpy_generator(seed).beta(alpha, alpha, count))
    return torch.maximum(share, 1 - share)


def interleaved(parts: list[Tensor]) -> list[Tensor]:
    """Swap images so that each part has a share of all of them; the function is its own inverse.

    The first part then stands for all in the one pass that updates running statistics (the authors' code of MixMatch,
    1905.02249). Row j of the first part changes places with row j of part j mod P, counted over all workers, so that
    every number of workers swaps the same images.

    Args:
        parts: P tensors of one shape [N, ...].
    """
    rows = torch.arange(len(parts[0]), device=parts[0].device) + rank() * len(parts[0])
    owner = (rows % len(parts)).view(-1, *[1] * (parts[0].dim() - 1))
    swapped = [torch.where(owner == place, parts[0], part) for place, part in enumerate(parts)]
    swapped[0] = sum(
        (torch.where(owner == place, part, 0) for place, part in enumerate(parts)), torch.zeros_like(parts[0])
    )
    return swapped


def interleaved_logits(network: nn.Module, parts: list[Tensor]) -> list[Tensor]:
    """Predict P parts, one pass each, of which only the first updates running statistics.

    It has a share of all parts, which are interleaved for it, and back again.

    Args:
        network: images -> logits.
        parts: P tensors of one shape [N, C, H, W].
    """
    first, *others = interleaved(parts)
    logits = [precise(network(first))]
    with frozen_statistics(network):
        logits += [precise(network(part)) for part in others]
    return interleaved(logits)


def mixed_with_all(parts: list[Tensor], order: Tensor, share: Tensor) -> list[Tensor]:
    """Mix the rows of P parts with a shuffle of the rows of all parts and workers (1905.02249, algorithm 1).

    Args:
        parts: P tensors of one shape [N, ...].
        order: of all workers' rows, int64 [workers * N * P], the same on all.
        share: of each row itself, the rest is its partner's, [workers * N * P].
    """
    rows = torch.stack(parts, 1).flatten(0, 1)  # image by image: a worker's rows are neighbours for any P
    partners = gather(rows)[own_rows(order).to(rows.device)]
    return list(mixed(rows, partners, own_rows(share)).unflatten(0, (-1, len(parts))).unbind(1))


def repeated(rows: Tensor, count: int) -> Tensor:
    """Repeat rows until there are `count`, [M, ...] -> [count, ...].

    Copies are neighbours, so that every number of workers repeats the same rows. Where M does not divide `count`, some
    rows have one copy more.
    """
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


def mean_prediction(logits: Tensor) -> Tensor:
    """Return the mean prediction over the images of all workers, [classes], without gradient."""
    return all_reduce_mean(precise(logits.detach()).softmax(1).mean(0))


def follow(average: nn.Module, momentum: float, *student: nn.Module) -> None:
    """Move an averaged network towards its student, and take over the student's running statistics.

    In evaluation mode an average of weights needs those of the images it sees.

    Args:
        average: a `frozen_copy(nn.Sequential(*student))`.
        momentum: share of the old weights that stays.
        student: the parts, in their order.
    """
    network = nn.Sequential(*student)
    ema_update(average, network, momentum)
    copy_buffers(average, network)

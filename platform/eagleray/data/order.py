"""The order of the images.

It is a function of (seed, epoch) or (seed, step), with no state to save.
"""

import numpy as np
import torch
from torch import Tensor

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.seeds import Stream, numpy_generator


def epoch_order(samples: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Return this worker's share of every batch of an epoch.

    The last images, less than a batch, are left out.

    Batch i of all workers, joined in the order of their ranks, is batch i of a single process.

    Args:
        samples: images to order.
        batch_size: images in a step, over all workers together.
        seed: of the run.
        epoch: counted from 0.
        rank: of this worker.
        world: number of workers.

    Returns:
        int64 [batch_size / world] for each of the samples // batch_size steps.

    Raises:
        ConfigError: there are fewer samples than a batch needs, or the workers cannot share it equally.
    """
    if batch_size > samples:
        raise ConfigError(f"batch_size={batch_size} is larger than the {samples} training images")
    steps = samples // batch_size
    order = numpy_generator(Stream.EPOCH, seed, epoch).permutation(samples)
    batches = torch.from_numpy(order[: steps * batch_size]).view(steps, batch_size)
    return list(batches[:, _share(batch_size, rank, world)])


def labelled_order(indices: Tensor, batch_size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Tensor:
    """Return this worker's share of a step's labelled batch.

    The batches go through all labelled images in one random order, then in another, and so on.

    Args:
        indices: the labelled images, int64 [M]; there may be fewer of them than a batch needs.
        batch_size: labelled images in a step, over all workers together.
        seed: of the run.
        step: counted from 0, over the whole run.
        rank: of this worker.
        world: number of workers.

    Returns:
        int64 [batch_size / world], elements of `indices`.

    Raises:
        ConfigError: there is no labelled image, or the workers cannot share the batch equally.
    """
    samples = len(indices)
    if samples == 0:
        raise ConfigError("there is no labelled image to train on")
    # The rounds through all labelled images that this batch falls into.
    first, last = step * batch_size // samples, ((step + 1) * batch_size - 1) // samples
    rounds = [numpy_generator(Stream.LABELLED, seed, r).permutation(samples) for r in range(first, last + 1)]
    start = step * batch_size - first * samples
    batch = np.concatenate(rounds)[start : start + batch_size]
    return indices[torch.from_numpy(batch[_share(batch_size, rank, world)])]


def _share(batch_size: int, rank: int, world: int) -> slice:
    size, rest = divmod(batch_size, world)
    if rest or size == 0:
        raise ConfigError(f"a batch of {batch_size} images cannot be shared by {world} workers")
    return slice(rank * size, (rank + 1) * size)

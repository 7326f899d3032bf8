"""Random numbers as functions of their purpose.

No generator has to be saved or shared between workers. Every draw of a run starts from its seed, through one of these
functions. Torch generators are seeded with a hash of their numbers, since the streams of neighbouring seeds would
otherwise be similar; numpy mixes its numbers itself.
"""

import hashlib
import random
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class Stream(IntEnum):
    """Purposes of numpy's random numbers.

    Shuffling, splitting and picking labels must not use the same ones.
    """

    EPOCH = 1  # the order of the training images
    LABELLED = 2  # the order of the labelled ones
    TEST = 11  # which images are held out as the test set
    VALIDATION = 12
    LIMIT = 13  # which images `data.limit` keeps
    PICK = 14  # which images keep their labels
    IMBALANCE = 16  # which images `data.imbalance` keeps
    LETTERS = 15  # how the letters of `datasets/letters.py` look


def seed_all(*parts: int) -> None:
    """Seed torch's global generators from a tuple.

    It is called before every step, so that no random state is carried.
    """
    import torch

    torch.manual_seed(_hashed(parts))


def seed_weights(seed: int, task: str = "") -> None:
    """Seed torch's global generators for initial weights.

    The seed itself is used, as torch scripts do; for a task beside the method, a hash of it and of the task's name.
    """
    import torch

    torch.manual_seed(_hashed((seed, *task.encode()), "weights") if task else seed)


def generator(*parts: int, purpose: str = "") -> "torch.Generator":
    """Return a torch generator seeded by a tuple.

    It is on the CPU, and the same on every worker that passes the same numbers.

    Args:
        parts: usually the run's seed and a step or an epoch.
        purpose: gives equal numbers separate streams; at most 16 characters.
    """
    import torch

    return torch.Generator().manual_seed(_hashed(parts, purpose))


def unhashed_generator(seed: int) -> "torch.Generator":
    """Return a torch generator seeded with the number itself, for draws that no other stream is near."""
    import torch

    return torch.Generator().manual_seed(seed)


def seed_python(seed: int) -> None:
    """Seed Python's global generator, for libraries that draw from it."""
    random.seed(seed)


def numpy_generator(*parts: int) -> np.random.Generator:
    """Return a numpy generator seeded by a tuple.

    The tuple begins with a `Stream` where one seed has several uses.
    """
    return np.random.default_rng(parts)


def python_generator(seed: int) -> random.Random:
    """Return Python's own random generator, for draws without numpy."""
    return random.Random(seed)


def _hashed(parts: tuple[int, ...], purpose: str = "") -> int:
    digest = hashlib.blake2b(repr(tuple(map(int, parts))).encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "little") >> 1

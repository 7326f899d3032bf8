"""Random numbers as functions of what they are for: no generator has to be saved, or agreed on by workers."""

import hashlib

import torch


def seed_all(*parts: int) -> None:
    """Seed torch's global generators from a tuple, before every step, so that no random state is carried."""
    torch.manual_seed(_hashed(parts))


def generator(*parts: int) -> torch.Generator:
    """A generator of its own, on the CPU, from a tuple: the same on every worker that names the same numbers."""
    return torch.Generator().manual_seed(_hashed(parts))


def _hashed(parts: tuple[int, ...]) -> int:
    """A hash: the seeds of neighbouring tuples would else be near each other."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

"""Streams of random numbers: functions of their numbers and purpose, and of nothing else."""

import hashlib
import random

import numpy as np
import torch

from eagleray.contracts.seeds import (
    Stream,
    generator,
    numpy_generator,
    python_generator,
    seed_all,
    seed_python,
    seed_weights,
    unhashed_generator,
)


def test_a_stream_is_a_function_of_its_numbers_and_its_purpose():
    def numbers(*parts: int, purpose: str = "") -> list[float]:
        return torch.rand(4, generator=generator(*parts, purpose=purpose)).tolist()

    assert numbers(1, 2) == numbers(1, 2)
    different = [numbers(1, 2), numbers(2, 1), numbers(1, 3), numbers(12), numbers(1, 2, purpose="view")]
    assert len({tuple(each) for each in different}) == 5


def test_the_hash_is_blake2b_of_the_numbers_as_python_prints_them():
    digest = hashlib.blake2b(b"(3, 7)", digest_size=8, person=b"view").digest()
    seed = int.from_bytes(digest, "little") // 2
    expected = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.rand(4, generator=generator(3, 7, purpose="view")), expected)


def test_global_generators_are_seeded_by_hash_or_with_the_number_itself():
    seed_all(3, 7)
    first = torch.rand(4)
    assert torch.equal(first, torch.rand(4, generator=generator(3, 7)))
    seed_weights(5)
    second = torch.rand(4)
    assert torch.equal(second, torch.rand(4, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(second, torch.rand(4, generator=unhashed_generator(5)))
    seed_python(5)
    assert random.random() == random.Random(5).random() == python_generator(5).random()


def test_numpys_streams_of_one_seed_are_apart():
    draws = {stream: tuple(numpy_generator(stream, 0).integers(2**32, size=3)) for stream in Stream}
    assert len(set(draws.values())) == len(Stream)
    assert (numpy_generator(5).random(3) == np.random.default_rng(5).random(3)).all()

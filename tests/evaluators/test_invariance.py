"""Invariance to single operations: its formula, and encoders whose invariance is known."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.augment import make_views
from eagleray.contracts.features import Features
from eagleray.evaluators.invariance import VIEWS, Invariance, invariance


def test_invariance_is_its_formula():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((40, 5)) + 7
    y = x + 0.3 * draw.standard_normal((40, 5))
    apart = np.mean([((x[i] - x[j]) ** 2).sum() for i, j in combinations(range(40), 2)])
    expected = 1 - ((x - y) ** 2).sum(1).mean() / apart
    assert invariance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected)
    assert invariance(torch.from_numpy(9 * x + 1), torch.from_numpy(9 * y + 1)) == pytest.approx(expected)


def test_nothing_moved_is_one_and_another_image_is_zero():
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    assert invariance(x, x) == 1
    assert invariance(x, x.roll(1, 0)) == pytest.approx(0, abs=0.05)
    assert invariance(torch.ones(9, 3), torch.ones(9, 3)) is None


@dataclass
class Encoded:
    """Images and an encoder of their pixels in 0..1."""

    images: Tensor
    encoder: object
    image_size: int = 16

    def views(self, views, most: int) -> list[Features]:
        mean, std = (0.0,) * 3, (1.0,) * 3
        made = make_views(views, self.images[:most], size=self.image_size, seed=(0,), mean=mean, std=std)
        return [Features(self.encoder(each).flatten(1)) for each in made]  # type: ignore[operator]


def test_encoders_of_known_invariance():
    images = torch.randint(0, 256, (300, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    evaluator = Invariance(Invariance.Config())

    def of(encoder) -> dict[str, float]:
        return dict(evaluator(Encoded(images, encoder)).numbers)  # type: ignore[arg-type]

    pixels = of(lambda x: x)
    assert set(pixels) == {f"invariant_{name}" for name in VIEWS} == set(Invariance.metrics)
    assert pixels["invariant_flip"] == pytest.approx(0, abs=0.05)  # noise, flipped, is other noise
    rows = of(lambda x: x.mean(3))  # a flip moves pixels within their rows
    assert rows["invariant_flip"] == pytest.approx(1)
    assert rows["invariant_rotate"] < 0.5
    grey = of(lambda x: (x * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1))
    assert grey["invariant_grayscale"] == pytest.approx(1, abs=1e-4)
    assert grey["invariant_jitter"] < 0.9

"""The random numbers of a batch of views.

They are functions of a seed, drawn before any pixel is touched.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eagleray.contracts.seeds import generator

Share = tuple[int, int]  # rank and number of the workers that hold a batch in equal parts
WHOLE: Share = (0, 1)
ATTEMPTS = 10  # torchvision's RandomResizedCrop also tries ten boxes before it uses the central one
# Numbers drawn per image and purpose. A new column would change all numbers, so new purposes use a `stream`.
_COLUMNS = {
    "areas": ATTEMPTS, "ratios": ATTEMPTS, "place": 2, "flip": 1, "jitter": 1, "grayscale": 1, "blur": 1, "solarize": 1,
    "rotate": 1, "factors": 4, "sigma": 1, "shift": 2, "cutout": 2, "order": 1, "turns": 1,
}  # fmt: skip


class Numbers:
    """Uniform numbers in 0..1 for a worker's images.

    Every purpose has its own column, drawn whether it is used or not: changing one operation does not change the
    others, so a sweep compares like with like. Image i depends only on the seed and on its place in the batch: a worker
    draws the numbers of the whole batch, which are few, and keeps its own rows.
    """

    def __init__(self, samples: int, seed: tuple[int, ...], share: Share = WHOLE):
        self._samples, self._seed, self._share = samples, seed, share
        columns = self.stream("view", sum(_COLUMNS.values())).split(list(_COLUMNS.values()))
        self._columns = dict(zip(_COLUMNS, columns, strict=True))

    def __getitem__(self, column: str) -> Tensor:
        """Return a column's numbers, [count, N]."""
        return self._columns[column]

    def stream(self, purpose: str, count: int) -> Tensor:
        """Return numbers of a separate stream, [count, N].

        The purpose has at most 16 characters.
        """
        rank, world = self._share
        drawn = torch.rand(world * self._samples, count, generator=generator(*self._seed, purpose=purpose))
        return drawn[rank * self._samples : (rank + 1) * self._samples].t().contiguous()

    def happens(self, column: str, probability: float) -> Tensor:
        """Return 1 with this probability, else 0, [N]."""
        return (self[column][0] < probability).float()

    def between(self, column: str, spans: Sequence[tuple[float, float]]) -> Tensor:
        """Return numbers within each span, [spans, N]."""
        low, high = torch.tensor(spans).t()[:, :, None]
        return self[column] * (high - low) + low


def whole(u: Tensor, count: Tensor | int) -> Tensor:
    """Convert uniform numbers to integers from 0 below `count`."""
    return (u * count).floor_().clamp_(max=count - 1)  # the product may round up to `count`, once in 10^7 draws

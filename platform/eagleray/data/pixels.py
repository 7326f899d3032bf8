"""Where images come from: a file mapped into memory, or processes that decode them anew. Imports no torch."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Protocol

import numpy as np

from eagleray.data.decode import decode_batch
from eagleray.data.workers import Decoders

AHEAD = 2  # batches under way for each worker process


class Pixels(Protocol):
    """All images of a source, one a row."""

    shape: tuple[int, ...]  # [N, C, H, W]

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """For every array of rows, int64 [n], a new array of their images, uint8 [n, C, H, W]."""
        ...


class Stored:
    """Images of a file that all processes of a machine map, and none can write."""

    def __init__(self, mapped: np.ndarray):
        self._mapped = np.asarray(mapped)
        self.shape = mapped.shape

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Copies, which the caller may change."""
        return (np.take(self._mapped, rows, axis=0) for rows in order)


class Streamed:
    """Images decoded when they are asked for, by processes that run ahead; the same bytes as `Stored`.

    Any number of iterators may be under way: evaluation reads while an epoch waits.
    """

    def __init__(self, paths: Sequence[str], size: int, channels: int, workers: int):
        self._paths = np.array(paths, dtype=object)
        self._workers = workers
        self.shape = (len(paths), channels, size, size)

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Decodes; the batches come in order whichever process is done first."""
        *_, channels, size, _ = self.shape
        wanted = ((list(self._paths[rows]), size, channels) for rows in order)
        return self._run_ahead(wanted) if self._workers else (decode_batch(*each) for each in wanted)

    def _run_ahead(self, wanted: Iterator[tuple[list[str], int, int]]) -> Iterator[np.ndarray]:
        begun = deque(self._decoders.submit(*each) for each in islice(wanted, AHEAD * self._workers))
        try:
            while begun:
                batch = begun.popleft().result()
                begun.extend(self._decoders.submit(*each) for each in islice(wanted, 1))
                yield batch
        finally:
            for future in begun:  # the caller has stopped early
                future.cancel()

    @cached_property
    def _decoders(self) -> Decoders:
        return Decoders(self._workers)

"""Sources of pixels: a mapped file, or decoding processes.

Nothing here imports torch.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Protocol

import numpy as np

from eagleray.data.decode import decode_all
from eagleray.data.workers import Decoders

Decoded = np.ndarray | list[np.ndarray]  # uint8: one [n, C, H, W], or n of [C, H, W] whose shapes may differ
AHEAD = 2  # batches that each worker process prepares ahead


class Pixels(Protocol):
    """All images of a source, numbered by row."""

    channels: int
    stored: int  # bytes in the cache

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[Decoded]:
        """Yield the images at each array of rows.

        Rows are int64 [n]. The caller may change arrays, but not lists.
        """
        ...


class Stored:
    """Images in a file that all processes map read-only.

    Args:
        flat: the pixels of all images, uint8, one image [C, H, W] after the other.
        sizes: [N, 2], height and width of each.
        channels: of every image.
    """

    def __init__(self, flat: np.ndarray, sizes: np.ndarray, channels: int):
        self.channels = channels
        self.stored = flat.nbytes
        self._mapped = np.asarray(flat)
        self._sizes = sizes.astype(np.int64)
        self._ends = channels * np.cumsum(self._sizes.prod(1))
        self._one_shape = bool((sizes == sizes[0]).all())

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[Decoded]:
        """Yield arrays for images of one shape, else lists."""
        if self._one_shape:
            images = self._mapped.reshape(-1, self.channels, *self._sizes[0])
            return (np.take(images, rows, axis=0) for rows in order)
        return ([self._image(row) for row in rows] for rows in order)

    def _image(self, row: int) -> np.ndarray:
        shape, end = (self.channels, *self._sizes[row]), self._ends[row]
        return self._mapped[end - np.prod(shape) : end].reshape(shape)


class Streamed:
    """Images decoded on demand by processes that work ahead.

    The bytes are the same as those of `Stored`. Any number of iterators may be open: evaluation reads while an epoch
    waits.

    Args:
        paths: the image files.
        size: shorter side that larger images are reduced to, in pixels.
        channels: of every image.
        workers: number of processes that decode.
    """

    def __init__(self, paths: Sequence[str], size: int, channels: int, workers: int):
        self.channels, self.stored = channels, 0
        self._paths = np.array(paths, dtype=object)
        self._size = size
        self._workers = workers

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[Decoded]:
        """Decode batches and yield them in order.

        It does not matter which process finishes first.
        """
        wanted = ((list(self._paths[rows]), self._size, self.channels) for rows in order)
        return self._run_ahead(wanted) if self._workers else (decode_all(*each) for each in wanted)

    def _run_ahead(self, wanted: Iterator[tuple[list[str], int, int]]) -> Iterator[list[np.ndarray]]:
        pending = deque(self._decoders.submit(*each) for each in islice(wanted, AHEAD * self._workers))
        try:
            while pending:
                batch = pending.popleft().result()
                pending.extend(self._decoders.submit(*each) for each in islice(wanted, 1))
                yield batch
        finally:
            for future in pending:  # the caller stopped early
                future.cancel()

    @cached_property
    def _decoders(self) -> Decoders:
        return Decoders(self._workers)

"""Encode a folder of images into a file of features."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch

from eagleray.augment import evaluation_view
from eagleray.augment.copies import mean_over_copies
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import whole
from eagleray.contracts.method import Method
from eagleray.data.decode import Bad, decode, in_threads
from eagleray.data.images import batched
from eagleray.datasets.folder.layout import listed

AHEAD = 2  # batches that are decoded while one is encoded
NAMED = 5  # files that a message names


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    images: int
    dim: int
    stray: int  # other files: hidden ones, and those not named like images
    bad: list[str]  # files that could not be read, relative to the folder


def embed(
    method: Method,
    folder: Path,
    out: Path,
    facts: Mapping[str, Any],
    *,
    device: torch.device,
    batch_size: int = 256,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Encode all images below a folder as evaluation does.

    Features are computed in float32, whatever the precision of the run: they are those of an exported encoder. Images
    are decoded batch by batch, so that memory holds some batches, and for `.npz` the features.

    Args:
        method: in eval mode; it is moved to the device.
        folder: its sub-folders are searched too; hidden files are left out.
        out: the file to write, `.parquet` or `.npz`; it appears once it is complete.
        facts: plain values to keep in the file.
        device: to compute on.
        batch_size: images encoded at a time.
        skip_bad: leave out images that cannot be read.
        progress: is told how many of how many files are done.

    Raises:
        ConfigError: there are no images, one cannot be read, or the file cannot be written.
    """
    kind = writer_for(out)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder" if folder.exists() else f"there is no folder {folder}")
    files = listed(folder)
    names = files.images
    info, method = method.data, method.to(device)
    facts = {**facts, "image_size": info.side, "stored_size": info.stored_size}
    facts |= {"channels": info.channels, "mirrored": info.mirrored, "shift": info.shift}
    facts |= {"mean": list(info.mean), "std": list(info.std)}
    bad: list[str] = []
    with whole(out, "--out {}; name another file") as file:
        writer: Writer | None = None
        for done, batch, images in _decoded(folder, names, batch_size, info.stored_size, info.channels):
            wrong = {name: image.reason for name, image in zip(batch, images, strict=True) if isinstance(image, Bad)}
            if wrong and not skip_bad:
                raise ConfigError(_unreadable(folder, wrong))
            bad += wrong
            if len(wrong) < len(batch):
                pixels = batched([image for image in images if not isinstance(image, Bad)]).to(device)
                with torch.no_grad():
                    view = evaluation_view(pixels, info.side, info.mean, info.std)
                    features = mean_over_copies(method.encode, view, info.mirrored, info.shift)
                writer = writer or kind(file, len(names), features.shape[1], facts)
                writer.add([name for name in batch if name not in wrong], features.cpu().numpy())
            progress(done, len(names))
        if writer is None:
            raise ConfigError(f"{folder} has {len(names)} files named like images, but none can be read as an image")
        writer.close()
    return Embedded(len(names) - len(bad), writer.dim, len(files.strays), bad)


def _decoded(
    folder: Path, names: Sequence[str], batch_size: int, size: int, channels: int
) -> Iterator[tuple[int, Sequence[str], list[np.ndarray | Bad]]]:
    """Yield how many files are done, the names of a batch and its images."""

    def decoded(batch: Sequence[str]) -> list[np.ndarray | Bad]:
        return list(in_threads(decode, [str(folder / name) for name in batch], size, channels))

    batches = [names[start : start + batch_size] for start in range(0, len(names), batch_size)]
    with ThreadPoolExecutor(1) as ahead:
        waiting = iter(batches)
        pending = deque((batch, ahead.submit(decoded, batch)) for batch in islice(waiting, AHEAD))
        done = 0
        while pending:
            batch, images = pending.popleft()
            result = images.result()
            pending.extend((each, ahead.submit(decoded, each)) for each in islice(waiting, 1))
            done += len(batch)
            yield done, batch, result


def _unreadable(folder: Path, wrong: Mapping[str, str]) -> str:
    some = ", ".join(f"{folder / name} ({reason})" for name, reason in islice(wrong.items(), NAMED))
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return f"cannot be read as images: {some}{more}; repair or remove them, or leave them out with --skip-bad"


class Writer(Protocol):
    """Writes features as they come."""

    dim: int

    def __init__(self, file: IO[bytes], most: int, dim: int, facts: Mapping[str, Any]): ...

    def add(self, names: Sequence[str], features: np.ndarray) -> None:
        """Add a batch: N names and float32 [N, dim]."""
        ...

    def close(self) -> None:
        """Write what is left; the file is the caller's to close."""
        ...


class Parquet:
    """Writes columns `path` and `features`, a row group a batch; facts are JSON in the schema's metadata."""

    def __init__(self, file: IO[bytes], most: int, dim: int, facts: Mapping[str, Any]):
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        self.dim, self.arrow = dim, pa
        columns = [("path", pa.string()), ("features", pa.list_(pa.float32(), dim))]
        self.schema = pa.schema(columns, metadata={"eagleray": json.dumps(facts)})
        self.writer = ParquetWriter(file, self.schema)

    def add(self, names: Sequence[str], features: np.ndarray) -> None:
        flat = self.arrow.array(np.ascontiguousarray(features, np.float32).reshape(-1))
        columns = [self.arrow.array(list(names)), self.arrow.FixedSizeListArray.from_arrays(flat, self.dim)]
        self.writer.write_table(self.arrow.Table.from_arrays(columns, schema=self.schema))

    def close(self) -> None:
        self.writer.close()


class Npz:
    """Writes arrays `paths` [N], `features` float32 [N, dim] and `facts` (JSON)."""

    def __init__(self, file: IO[bytes], most: int, dim: int, facts: Mapping[str, Any]):
        self.dim, self.file, self.facts, self.names = dim, file, facts, list[str]()
        self.features = np.empty((most, dim), np.float32)

    def add(self, names: Sequence[str], features: np.ndarray) -> None:
        self.features[len(self.names) : len(self.names) + len(names)] = features
        self.names += names

    def close(self) -> None:
        rows = self.features[: len(self.names)]
        np.savez(self.file, paths=np.array(self.names), features=rows, facts=np.array(json.dumps(self.facts)))


def writer_for(out: Path) -> type[Parquet] | type[Npz]:
    """Return what writes a file of this ending.

    Raises:
        ConfigError: nothing does.
    """
    kinds: dict[str, type[Parquet] | type[Npz]] = {".parquet": Parquet, ".npz": Npz}
    if out.suffix not in kinds:
        raise ConfigError(f"--out {out}: features are written as .parquet or .npz; use a name that ends in one of them")
    return kinds[out.suffix]

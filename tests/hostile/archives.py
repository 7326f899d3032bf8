"""Archives that nobody should have to read: 70 files in place of one of CIFAR, MNIST or STL-10.

Each is made by a function that gets the folder with good files, and damages one of them.
"""

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hostile.images import zeros

Make = Callable[[Path], object]
CIFAR, IDX = "cifar-10-batches-py", "train-images-idx3-ubyte"
COUNT = 20  # images of each file
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pixels(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3072), np.uint8)


def labels(count: int = COUNT) -> list[int]:
    return [number % 10 for number in range(count)]


def good_cifar(root: Path, protocol: int = 2) -> None:
    folder = root / CIFAR
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels(), "labels": labels()}, protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}, protocol))


def idx(array: np.ndarray, kind: int = 8, sides: tuple[int, ...] | None = None) -> bytes:
    sides = array.shape if sides is None else sides
    return struct.pack(f">HBB{len(sides)}I", 0, kind, len(sides), *sides) + array.tobytes()


def good_mnist(root: Path) -> None:
    root.mkdir(parents=True)
    for part in ("train", "t10k"):
        (root / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels()[:, :784].reshape(-1, 28, 28)))
        (root / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array(labels(), np.uint8)))


def good_stl10(root: Path) -> None:
    root.mkdir(parents=True)
    for part in ("train", "test", "unlabeled"):
        np.zeros((10, 3, 96, 96), np.uint8).tofile(root / f"{part}_X.bin")
        (np.arange(10, dtype=np.uint8) + 1).tofile(root / f"{part}_y.bin")


class Called:
    """Pickles as a call of anything with anything, and what to set after it."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def batch(protocol: int = 4, **values: Any) -> Make:
    """Make a batch of which some values are others; a function gets the folder."""

    def make(root: Path) -> None:
        content = {key: value(root) if callable(value) else value for key, value in values.items()}
        whole = {"data": pixels(), "labels": labels(), **content}
        (root / CIFAR / "data_batch_1").write_bytes(pickle.dumps(whole, protocol))

    return make


def raw(content: bytes | Callable[[Path], bytes], name: str = f"{CIFAR}/data_batch_1") -> Make:
    return lambda root: (root / name).write_bytes(content(root) if callable(content) else content)


def meta(**values: Any) -> Make:
    return lambda root: (root / CIFAR / "batches.meta").write_bytes(pickle.dumps(values, 2))


def canary(root: Path) -> Called:
    return Called(os.mkdir, str(root / "canary"))


def as_script(protocol: int) -> Callable[[Path], bytes]:
    return lambda root: pickle.dumps(canary(root), protocol)


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def shared_lists() -> list[Any]:
    values: list[Any] = [1] * 9
    for _ in range(9):
        values = [values] * 9
    return values


def code_of(root: Path) -> bytes:
    """Name a function by attributes of what may be named."""
    return opcodes(global_("numpy", "ndarray.__class__.__subclasses__"), b")R")


def memory(shape: Any, kind: Any, *buffer: Any) -> Callable[[Path], Called]:
    return lambda root: Called(np.ndarray, shape, kind, *buffer)


def reconstructed(*state: Any) -> Called:
    from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]

    return Called(_reconstruct, np.ndarray, (0,), b"b", state=state)


BYTES = bytes(COUNT * 3072)
CIFARS: dict[str, Make] = {
    # code
    "a call of mkdir, protocol 0": raw(as_script(0)),
    "a call of mkdir, protocol 2": raw(as_script(2)),
    "a call of mkdir, protocol 4": raw(as_script(4)),
    "a call of mkdir, protocol 5": raw(as_script(5)),
    "a call of mkdir as labels": batch(labels=canary),
    "a call of mkdir as pixels": batch(data=canary),
    "a call of mkdir beside the batch": batch(more=canary),
    "a call of eval": batch(labels=lambda root: Called(eval, f"open('{root}/canary', 'w')")),
    "a call of getattr": batch(labels=lambda root: Called(getattr, np.ndarray, "tobytes")),
    "a call of numpy.load": batch(labels=lambda root: Called(np.load, str(root / "x.npy"))),
    "a call of numpy.memmap": batch(data=lambda root: Called(np.memmap, str(root / "canary"), "u1", "w+", 0, (20,))),
    "attributes of a class": raw(code_of),
    "an object by INST": raw(lambda root: b"(S'%s/canary'\nios\nmkdir\n." % os.fsencode(root)),
    "an object by OBJ": raw(opcodes(b"(", global_("os", "getcwd"), b"o")),
    "an object by NEWOBJ": raw(opcodes(global_("numpy", "ndarray"), b"(K\x04\x85tb\x81")),
    "an extension": raw(opcodes(b"\x82\x01")),
    "a persistent object": raw(opcodes(b"Px\n")),
    "a buffer from elsewhere": raw(b"\x80\x05\x97."),
    # memory of others
    "pointers as labels": batch(labels=memory((4,), "O", b"A" * 32)),
    "pointers as pixels": batch(data=memory((20, 3072), "O", b"A" * 8 * 20 * 3072)),
    "pointers by an array's state": batch(labels=reconstructed(1, (4,), np.dtype("O"), False, b"A" * 32)),
    "foreign memory as pixels": batch(data=memory((COUNT, 3072), "u1")),
    "foreign memory as labels": batch(labels=memory((COUNT,), "i8")),
    "strides out of the array": batch(data=memory((COUNT, 3072), "u1", b"A" * 8, 0, (10**6, 10**6))),
    "an array that is never filled": batch(data=Called(np.ndarray, (COUNT, 3072), "u1")),
    "more shape than bytes": batch(data=reconstructed(1, (COUNT, 3072), np.dtype("u1"), False, b"A")),
    "a negative shape": batch(data=reconstructed(1, (-1, -3072), np.dtype("u1"), False, bytes(3072))),
    "a shape that overflows": batch(data=reconstructed(1, (2**62, 4), np.dtype("u1"), False, b"")),
    "records as labels": batch(labels=np.zeros(COUNT, [("a", "i8")])),
    "numbers of another order": batch(labels=np.zeros(COUNT, ">i8")),
    # damage
    "nothing": raw(b""),
    "a page": raw(b"<html>404</html>"),
    "cut short": lambda root: os.truncate(root / CIFAR / "data_batch_1", 500),
    "a list": raw(pickle.dumps([1])),
    "no labels": raw(pickle.dumps({"data": pixels()})),
    "labels of a class that is not there": batch(labels=[255] * COUNT),
    "negative labels": batch(labels=[-5] * COUNT),
    "labels of words": batch(labels=["cat"] * COUNT),
    "labels that are too large": batch(labels=[10**30] * COUNT),
    "fewer labels than images": batch(labels=labels(3)),
    "nine lists in each other, each nine times": batch(labels=shared_lists()),
    "100,000 lists in each other": raw(opcodes(b"]" * 100_000, b"a" * 99_999)),
    "a key of 100,000 tuples": raw(opcodes(b"}", b")", b"\x85" * 100_000, b"K\x01s")),
    "a place far out in the memo": raw(opcodes(b"N", b"r\xff\xff\xff\x7f")),
    "a text of 8 exabytes": raw(b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"x."),
    "a number of 5,000 digits": raw(b"L" + b"9" * 5000 + b"L\n."),
    "two million numbers": raw(opcodes(b"](", b"K\x01" * 2_000_000, b"e")),
    "names that are no list": meta(label_names=5),
    "two names for ten labels": meta(label_names=["cat", "dog"]),
    "no names": meta(other=[]),
}
FILES = IDX, "train-labels-idx1-ubyte"
MNISTS: dict[str, Make] = {
    "rank 255": raw(idx(np.zeros(1, np.uint8), sides=(1,) * 255), IDX),
    "rank 2": raw(idx(pixels()[:, :784]), IDX),
    "images that are no squares": raw(idx(pixels()[:, :560].reshape(-1, 28, 20)), IDX),
    "images of no pixels": raw(idx(np.zeros((COUNT, 0, 0), np.uint8)), IDX),
    "another kind of number": raw(idx(pixels()[:, :784].reshape(-1, 28, 28), kind=13), IDX),
    "more than there is": raw(idx(np.zeros(1, np.uint8), sides=(2**31, 28, 28)), IDX),
    "an idx cut short": lambda root: os.truncate(root / IDX, 500),
    "an empty idx": raw(b"", IDX),
    "label 200": raw(idx(np.full(COUNT, 200, np.uint8)), FILES[1]),
    "fewer labels than pictures": raw(idx(np.array(labels(3), np.uint8)), FILES[1]),
}


def packed(content: bytes) -> Make:
    def make(root: Path) -> None:
        (root / IDX).unlink()
        (root / f"{IDX}.gz").write_bytes(content)

    return make


def gz(body: bytes, size: int) -> bytes:
    """Return a gzip file of a packed body, as `zeros` makes it, without its checksum."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + body[2:-4] + struct.pack("<II", 0, size % 2**32)


GZ: dict[str, Make] = {
    "4 GB of zeros": packed(gz(zeros(4 * 10**9), 4 * 10**9)),
    "images of 4 GB": packed(gzip.compress(idx(np.zeros(0, np.uint8), sides=(5 * 10**6, 28, 28)))),
    "a wrong checksum": packed(gzip.compress(idx(pixels()[:, :784].reshape(-1, 28, 28)))[:-8] + bytes(8)),
    "no gzip": packed(b"no gzip"),
    "a gzip cut short": packed(gzip.compress(idx(pixels()[:, :784].reshape(-1, 28, 28)))[:2000]),
}
STLS: dict[str, Make] = {
    "no whole image": raw(b"12345", "train_X.bin"),
    "label 0": raw(bytes(10), "train_y.bin"),
    "label 255": raw(b"\xff" * 10, "train_y.bin"),
    "more labels than images": raw(b"\x01" * 30, "train_y.bin"),
    "a sparse file of a terabyte": lambda root: os.truncate(root / "unlabeled_X.bin", 27648 * 40_000_000),
}
SOURCES: dict[str, tuple[Callable[[Path], None], dict[str, Make]]] = {
    "cifar10": (good_cifar, CIFARS),
    "mnist": (good_mnist, {**MNISTS, **GZ}),
    "stl10": (good_stl10, STLS),
}

"""Images that nobody should have to read: 31 kinds, each made by a function that gets a folder of its own."""

import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Make = Callable[[Path], object]


def noise(side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    whole = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", whole)


def zeros(count: int) -> bytes:
    """Return that many zeros, packed by zlib; the packed parts of a large number are all alike."""
    deflate, size = zlib.compressobj(9, wbits=-15), min(count, 2**20)
    part = deflate.compress(bytes(size)) + deflate.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    last = rest.compress(bytes(count % size)) + rest.flush()
    return b"\x78\x9c" + count // size * part + last + struct.pack(">HH", count % 65521, 1)


def png(width: int, height: int, kind: int = 2, *extra: bytes, pixels: bytes | None = None) -> bytes:
    """Return a PNG of zeros; kind 2: RGB, 0: grey, 3: palette, 6: RGBA."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(3)) if kind == 3 else b""
    if pixels is None:
        pixels = zeros(height * (1 + width * {0: 1, 2: 3, 3: 1, 6: 4}[kind]))
    return b"\x89PNG\r\n\x1a\n" + head + palette + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(name: str, content: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content)


def encoded(format_: str, cut: int | None = None) -> Make:
    def make(folder: Path) -> None:
        path = folder / f"x.{format_}"
        noise(64).save(path)
        if cut is not None:
            path.write_bytes(path.read_bytes()[:cut])

    return make


def huge(name: str, side: int, kind: int) -> Make:
    return lambda folder: (folder / name).write_bytes(png(side, side, kind))


def sparse(folder: Path) -> None:
    with (folder / "x.webp").open("wb") as file:  # which Pillow would read whole
        noise(64).save(file, "webp")
        file.truncate(8 * 2**30)


def zip_bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.jpg", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(2**24))


def listening(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket has at most 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x.jpg")
    finally:
        os.chdir(here)


def link(name: str, target: str) -> Make:
    return lambda folder: (folder / name).symlink_to(target)


def circles(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).symlink_to(folder)


def deep(folder: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        noise().save("x.png")
    finally:
        os.chdir(here)


def program(folder: Path) -> None:
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    (folder / "x.jpg").write_text(f"{text}({folder}/canary) (w) file closefile\nshowpage\n%%EOF\n")


class Canary:
    """Writes a file where it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "canary"),)


SVG = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>'
BMP = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)

KINDS: dict[str, Make] = {
    "empty": saved("x.png", b""),
    "text": saved("x.png", b"no image"),
    "a web page": saved("x.jpg", b"<html><body>404</body></html>"),
    "a pointer of Git LFS": saved("x.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "an SVG with an entity": saved("x.png", SVG.encode()),
    "a Python file": lambda folder: (folder / "x.png").write_text(f"open('{folder}/canary', 'w')"),
    "a pickle": lambda folder: (folder / "x.png").write_bytes(pickle.dumps(Canary(folder))),
    "a program of PostScript": program,
    "a zip bomb": zip_bomb,
    "a JPEG cut short": encoded("jpg", 500),
    "a PNG cut short": encoded("png", 500),
    "a GIF cut short": encoded("gif", 500),
    "a WebP cut short": encoded("webp", 200),
    "a TIFF cut short": encoded("tif", 500),
    "169 million pixels": huge("x.png", 13_000, 2),
    "169 million pixels of a palette": huge("x.png", 13_000, 3),
    "49 million transparent pixels": huge("x.png", 7_000, 6),
    "2**62 pixels": saved("x.png", png(2**31 - 1, 2**31 - 1, pixels=b"")),
    "2**60 pixels of a bitmap": saved("x.bmp", BMP),
    "4 billion pixels of a portable map": saved("x.ppm", b"P6 65535 65535 255\n"),
    "a wrong checksum": saved("x.png", png(8, 8).replace(b"IHDR", b"IHDR", 1)[:29] + b"\0\0\0\0" + png(8, 8)[33:]),
    "a text of a gigabyte": saved("x.png", png(8, 8, 2, chunk(b"zTXt", b"a\0\0" + zeros(2**30)))),
    "a sparse file of 8 GiB": sparse,
    "a pipe": lambda folder: os.mkfifo(folder / "x.jpg"),
    "a socket": listening,
    "an endless device": link("x.jpg", "/dev/zero"),
    "a link to nothing": link("x.jpg", "gone"),
    "a link to itself": link("x.jpg", "x.jpg"),
    "two links to their own folder": circles,
    "1,200 folders in each other": deep,
    "a name that clears the screen": lambda folder: (folder / "\x1b[2J\x1b]0;owned\x07.png").write_text("no image"),
}
# What is no damage: folders that are read once, however they are linked.
HARMLESS = ("two links to their own folder", "1,200 folders in each other")

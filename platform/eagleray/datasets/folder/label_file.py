"""Labels from a file of paths and labels, as people write them.

The csv module reads it: comma, semicolon or tab, with or without a header, UTF-8 or Excel's UTF-16.
"""

import codecs
import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from eagleray.contracts.dataset import content
from eagleray.contracts.errors import ConfigError

ENDINGS = (".csv", ".tsv", ".txt")
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "name")
LABELS = ("label", "class", "class_name", "category", "target", "labels")
DELIMITERS = (",", ";", "\t")
LARGEST = 256 * 2**20  # bytes of a file: some million images
SHOWN = 3  # mistakes of one kind that a message names

real_folder = lru_cache(maxsize=None)(os.path.realpath)


@dataclass(frozen=True)
class Line:
    """One line of the file: an image and its label."""

    number: int
    path: str  # as written
    label: str  # empty: unlabelled


def read_labels(file: Path, root: Path, images: Sequence[str]) -> list[str]:
    """Return the label of each image; an empty text for images without one.

    Args:
        file: its paths are relative to its own folder or to `root`, or absolute.
        root: the folder of the images.
        images: all image files.

    Raises:
        ConfigError: the file cannot be read, names what is no image, or gives one image two labels.
    """
    places = [identity(path) for path in images]
    known = set(places)
    found: dict[str, Line] = {}
    missing: list[Line] = []
    for line in _lines(file, root, known):
        place = _place(line.path, file.parent, root, known)
        if place is None:
            missing.append(line)
        elif found.setdefault(place, line).label != line.label:
            first = found[place]
            raise ConfigError(
                f"{file} gives {line.path} two labels, {first.label!r} in line {first.number} and {line.label!r} in "
                f"line {line.number}: remove one of the lines"
            )
    if missing:
        raise ConfigError(_listed(file, root, missing))
    return [found[place].label if place in found else "" for place in places]


def identity(path: str) -> str:
    """Return one name for each way to write a path.

    Links to folders are followed; composed and decomposed letters are the same.
    """
    folder, name = os.path.split(os.path.normpath(path))
    return unicodedata.normalize("NFC", os.path.join(real_folder(folder), name))


def _place(path: str, beside: Path, root: Path, known: set[str]) -> str | None:
    """Return which of the known images a written path means, if any."""
    for written in dict.fromkeys((path, path.replace("\\", "/"))):
        for folder in (beside, root):
            place = identity(os.path.join(folder, written))
            if place in known:
                return place
    return None


def _lines(file: Path, root: Path, known: set[str]) -> Iterator[Line]:
    rows = _rows(file)
    number, first = next(iter(rows.items()))
    widths = {len(row) for row in rows.values()}
    if widths != {len(first)}:
        other = next(at for at, row in rows.items() if len(row) != len(first))
        raise ConfigError(
            f"line {other} of {file} has {len(rows[other])} columns, and line {number} has {len(first)}: put texts "
            "that contain the separator into double quotes"
        )
    at_path, at_label, has_header = _columns(file, rows, root, known)
    for number, row in list(rows.items())[has_header:]:
        path, label = row[at_path].strip(), row[at_label].strip()
        if path:
            yield Line(number, path, label)
        elif label:
            raise ConfigError(
                f"line {number} of {file} has the label {label!r} and no path: add the path, or remove it"
            )


def _columns(file: Path, rows: Mapping[int, list[str]], root: Path, known: set[str]) -> tuple[int, int, bool]:
    """Return the places of paths and labels, and whether the first row names them.

    Two columns need no names: the one that names images has the paths.
    """
    first, *others = rows.values()
    names = [name.strip().lower() for name in first]
    path, label = (next((names.index(name) for name in each if name in names), None) for each in (PATHS, LABELS))
    if path is not None and label is not None:
        return path, label, True
    if len(names) != 2:
        raise ConfigError(f"{file} has the columns {', '.join(first)}: call the two that count `path` and `label`")
    hits = [
        sum(_place(row[column].strip(), file.parent, root, known) is not None for row in rows.values())
        for column in (0, 1)
    ]
    path = int(hits[1] > hits[0])
    cell = first[path].strip()
    is_header = bool(others) and _place(cell, file.parent, root, known) is None and not os.path.splitext(cell)[1]
    return path, 1 - path, is_header


def _rows(file: Path) -> dict[int, list[str]]:
    """Return the rows that are not empty, by line number, split by the separator that fits."""
    text = _text(file)
    tables = [_split(file, text, delimiter) for delimiter in DELIMITERS]
    if not tables[0]:
        raise ConfigError(f"{file} is empty: it needs a line `path,label` for each labelled image")
    fitting = [table for table in tables if all(len(row) > 1 for row in table.values())]
    even = [table for table in fitting if len({len(row) for row in table.values()}) == 1]
    for table in (*even, *fitting, *tables):
        if len(next(iter(table.values()))) > 1:
            return table
    raise ConfigError(f"{file} has one column: separate path and label by a comma, a semicolon or a tab")


def _split(file: Path, text: str, delimiter: str) -> dict[int, list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ConfigError(f"{file}, line {reader.line_num}: {error}; save it as CSV") from error
    return {number: row for number, row in rows if any(map(str.strip, row))}


def _text(file: Path) -> str:
    raw = content(file, LARGEST, f"data.labels={file}")
    is_wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text in UTF-8: save it as `CSV UTF-8`") from error


def _listed(file: Path, root: Path, missing: list[Line]) -> str:
    named = ", ".join(f"{line.path} (line {line.number})" for line in missing[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return (
        f"{file} names what is no image below data.root={root}: {named}{more}; write paths "
        "relative to data.root or to the file's own folder, and remove what is not there"
    )

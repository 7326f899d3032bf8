"""Draw the views that training sees.

Each row shows an image with the parts of it that its views show, then the views. They are those of the first step, to
the bit: the seed, the batch and the places in it are those of training. A sweep has a block for each value of what it
varies in the views.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from eagleray.config import Run, Sweep
from eagleray.config.search_points import as_param
from eagleray.contracts.files import make_folder, whole
from eagleray.contracts.ranges import probes
from eagleray.contracts.view import View
from eagleray.data.images import Data
from eagleray.data.loader import BatchLoader, Sample
from eagleray.runs.assemble import build_method, fitted, images_of

VIEWS = "views.png"  # among the artifacts of a run
ROWS = 8
BLOCKS = 8  # of a sweep, at most
CELL = 96  # pixels of a cell's side, at least
GAP, LINE = 6, 14  # pixels between cells, and of a line of text
LETTER = 6  # pixels of a letter, about
GREY, BLACK = (110, 110, 110), (20, 20, 20)
COLORS = ("#e6194b", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf", "#bcbd22", "#8c564b")  # of the views


@dataclass(frozen=True)
class Row:
    """An image with its views."""

    name: str  # its class; empty where there are none
    sample: Sample


@dataclass(frozen=True)
class Block:
    """Rows of one run, with its views in words."""

    title: str
    views: tuple[View, ...]
    rows: list[Row]
    data: Data

    @property
    def words(self) -> list[str]:
        """One line for each kind of view."""
        numbers: dict[str, list[str]] = {}
        for number, view in enumerate(self.views, 1):
            numbers.setdefault(view.words or "nothing is changed", []).append(str(number))
        return [f"view {', '.join(which)}: {words}" for words, which in numbers.items()]


def preview(run: Run, path: Path, data: Data | None = None, template: str = "") -> None:
    """Write a PNG of images and the views of them that training sees.

    Args:
        run: names the method, the images and the changes to the views.
        path: of the PNG.
        data: the images, if they are loaded already.
        template: what is said if the file cannot be written (see `contracts.files.whole`).

    Raises:
        ConfigError: the run does not fit its data.
        Failed: there is no room on the disk, or the file cannot be written.
    """
    _write(list(blocks(run, data)), path, template)


def preview_sweep(sweep: Sweep, path: Path, template: str = "") -> int:
    """Write a PNG with a block for each value that changes the views.

    Return how many values there was no room for. One value changes at a time, the others are the first of theirs.

    Raises:
        ConfigError: a run does not fit its data.
    """
    found: dict[tuple[Any, ...], Block] = {}
    for values in _variants(sweep):
        title = " ".join(f"{key.removeprefix('augment.')}={as_param(value)}" for key, value in values.items())
        run = sweep.variant(values)
        for block in blocks(run, title=title):
            found.setdefault((block.views, str(run.data), run.image_size), block)
    _write(list(found.values())[:BLOCKS], path, template)
    return max(0, len(found) - BLOCKS)


def _variants(sweep: Sweep) -> Iterator[dict[str, Any]]:
    spans = {key: probes(span) for key, span in sweep.ranges().items()}
    spans = {key: values for key, values in spans.items() if key.startswith("augment.")} or spans
    first = {key: values[0] for key, values in spans.items()}
    yield first
    yield from ({**first, key: value} for key, values in spans.items() for value in values[1:])


def blocks(run: Run, data: Data | None = None, title: str = "") -> Iterator[Block]:
    """Yield the views of a run's images, and those of its labelled images if it needs some.

    They are those that the first worker sees in the first step.
    """
    data = data or images_of(run)
    info = fitted(run, data.info)
    loader = BatchLoader(run, data, info, build_method(run, info), torch.device("cpu"))
    kinds: list[tuple[bool, Sequence[View]]] = [(False, loader.views), (True, loader.labelled_views)]
    for labelled, views in kinds:
        if not views or (labelled and run.labels is None):
            continue
        places = loader.order(0, labelled=labelled, workers=run.workers).numpy()
        classes = None if data.train.labels is None else data.train.labels[places]
        picked = chosen(places, classes, ROWS)
        names = [""] * len(picked) if classes is None else _names(data, classes[picked])
        rows = list(map(Row, names, loader.samples(picked, labelled=labelled)))
        yield Block(" ".join(filter(None, [title, "(labelled)" if labelled else ""])), tuple(views), rows, data)


def chosen(places: np.ndarray, classes: np.ndarray | None, count: int) -> list[int]:
    """Choose rows of a batch evenly.

    They are spread over the classes, or over the folder if there are none.

    Args:
        places: of the batch's images in the training set, int64 [N].
        classes: of the images, int64 [N]; None: there are none.
        count: how many rows are wanted.

    Returns:
        At most `count` rows, in the order of the classes or of the folder.
    """
    if classes is None:
        return places.argsort()[_spread(len(places), count)].tolist()
    groups = [np.flatnonzero(classes == each).tolist() for each in np.unique(classes)]
    groups = [groups[place] for place in _spread(len(groups), count)]
    rounds = chain.from_iterable(zip_longest(*groups))
    return sorted(islice((row for row in rounds if row is not None), count), key=lambda row: (classes[row], row))


def _spread(count: int, wanted: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(int)


def _names(data: Data, classes: np.ndarray) -> list[str]:
    known: tuple[str, ...] = data.class_names or ()
    return [known[each] if each >= 0 else "unlabelled" for each in map(int, classes)]


# --- the picture -----------------------------------------------------------------------------------------------


def _write(parts: Sequence[Block], path: Path, template: str) -> None:
    pictures = [_picture(block) for block in parts]
    head = max(height for _, height in pictures)
    size = (
        sum(p.width for p, _ in pictures) + GAP * (len(pictures) - 1),
        max(head - h + p.height for p, h in pictures),
    )
    picture, left = Image.new("RGB", size, "white"), 0
    for each, height in pictures:  # rows of different blocks lie side by side, whatever is written above them
        picture.paste(each, (left, head - height))
        left += each.width + GAP
    make_folder(path.parent, template)
    with whole(path, template) as file:
        picture.save(file, format="PNG")


def _picture(block: Block) -> tuple[Image.Image, int]:
    """Draw a block; return it with the height of the text above its rows."""
    largest = max(view.shape[-1] for row in block.rows for view in row.sample.views)
    cell = largest * max(1, -(-CELL // largest))
    count = 1 + len(block.views)
    width = count * (cell + GAP) + GAP
    text = [line for words in block.words for line in textwrap.wrap(words, (width - GAP) // LETTER)]
    title = textwrap.wrap(block.title, (width - GAP) // LETTER)
    head = GAP + LINE * (len(title) + len(text) + 1)
    each = LINE + cell + GAP
    picture = Image.new("RGB", (width, head + each * len(block.rows)), "white")
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate([*title, *text]):
        pen.text((GAP, GAP + number * LINE), line, fill=BLACK if number < len(title) else GREY)
    for number, row in enumerate(block.rows):
        top = head + each * number
        pen.text((GAP, top - 1), row.name[: cell // LETTER], fill=GREY)
        original = _fitted(row.sample.image, cell)
        picture.paste(original, (GAP, top + LINE))
        for place, view in enumerate(row.sample.views):
            color, left = COLORS[place % len(COLORS)], GAP + (place + 1) * (cell + GAP)
            pen.text((left, top - 1), f"view {place + 1}", fill=color)
            picture.paste(shown := _fitted(_bytes(view, block.data), cell), (left, top + LINE))
            pen.rectangle(_around(left, top + LINE, *shown.size), outline=color, width=2)
            if block.views[place].crop is not None:
                pen.rectangle(_box(row.sample, place, original, GAP, top + LINE), outline=color, width=2)
    return picture, head


def _around(left: int, top: int, width: int, height: int) -> tuple[int, int, int, int]:
    return left - 2, top - 2, left + width + 1, top + height + 1


def _box(sample: Sample, view: int, shown: Image.Image, left: int, top: int) -> tuple[float, float, float, float]:
    """Return the crop of a view as a rectangle on the image as it is shown."""
    y, x, height, width = sample.boxes[view]
    down, right = shown.height / sample.image.shape[-2], shown.width / sample.image.shape[-1]
    return left + x * right, top + y * down, left + (x + width) * right - 1, top + (y + height) * down - 1


def _bytes(view: Tensor, data: Data) -> Tensor:
    """Undo the normalising: float -> uint8."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (data.info.mean, data.info.std))
    return ((view.float() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)


def _fitted(image: Tensor, side: int) -> Image.Image:
    """Fit an image, uint8 [C, H, W], into a cell.

    Enlarge by whole pixels, so that small images stay sharp.
    """
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    factor = side // max(picture.size)
    if not factor:
        return ImageOps.contain(picture, (side, side))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)

"""Draw the views that training sees.

Each row shows an image itself, then its views.
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from eagleray.augment import make_views
from eagleray.augment.override import overridden
from eagleray.config import Run
from eagleray.contracts.errors import ConfigError
from eagleray.data.images import Data
from eagleray.runs.assemble import build_method, fitted, images_of

ROWS = 8
COLUMNS = 4  # of views, at least: a method with fewer shows each of them several times
CELL = 72  # pixels of a cell's side, at least
GAP, HEAD = 4, 16
GREY = (90, 90, 90)


def preview(run: Run, path: Path, data: Data | None = None) -> None:
    """Write a PNG grid of views of training images.

    The first images are used, and the views are drawn from the run's seed.

    Args:
        run: names the method, the images and the changes to the views.
        path: of the PNG.
        data: the images, if they are loaded already.

    Raises:
        ConfigError: the run does not fit its data, or the file cannot be written.
    """
    data = data or images_of(run)
    columns = _columns(run, data)
    largest = max(min(image.shape[-2:]) for images in columns.values() for image in images)
    cell = largest * max(1, -(-CELL // largest))
    count = len(next(iter(columns.values())))
    grid = Image.new("RGB", (len(columns) * (cell + GAP) + GAP, HEAD + count * (cell + GAP)), "white")
    pen = ImageDraw.Draw(grid)
    for column, (name, images) in enumerate(columns.items()):
        left = GAP + column * (cell + GAP)
        pen.text((left, 2), name, fill=GREY)
        for row, image in enumerate(images):
            grid.paste(_fitted(image, cell), (left, HEAD + row * (cell + GAP)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        grid.save(unfinished, format="PNG")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another file") from None


def _columns(run: Run, data: Data) -> dict[str, list[Tensor]]:
    """Return each column's name and images.

    Images are uint8 [C, H, W]. Their sizes may differ.
    """
    method = build_method(run, fitted(run, data.info))
    images = next(iter(data.train.batches([torch.arange(min(ROWS, len(data.train)))])))
    kinds = {"view": overridden(method.views, run.augment)}
    if run.labels is not None:
        kinds["labelled"] = overridden(method.labelled_views, run.augment)
    columns = {"image": list(images)}
    for number, (kind, views) in enumerate(kinds.items()):
        repeats = -(-COLUMNS // len(views)) if views else 0
        drawn = make_views(
            views * repeats,
            images,
            size=run.image_size or data.info.image_size,
            seed=(run.seed, number),
            mean=data.info.mean,
            std=data.info.std,
            exact=run.augment.exact,
        )
        for place, view in enumerate(drawn):
            padding = " " * (place // len(views))  # repeated views show the same name, but need different keys
            columns[f"{kind} {place % len(views) + 1}{padding}"] = list(_bytes(view, data))
    return columns


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

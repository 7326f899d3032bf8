"""Tell MLflow which images a run used, and show it their views."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eagleray.runs.record import Record

if TYPE_CHECKING:
    from mlflow.entities import Dataset, DatasetInput

VIEWS = "artifacts/views.png"
SHOWN = 256  # width of a picture in the grid, in pixels, as MLflow makes its own
HAS_IMAGES = {"mlflow.loggedImages": "True"}  # the tag by which MLflow's pages know that there is a grid of images


def dataset(record: Record) -> "Dataset | None":
    """Return the images of a run as MLflow knows data sets, or None if they are unknown.

    The digest is that of the whole source: runs with different parts or seeds of it show the same one.
    """
    from mlflow.entities import Dataset

    facts = record.data()
    if facts is None:
        return None
    where = {"uri": str(facts["source"].get("root", facts["name"])), "settings": facts["source"]}
    own = ("name", "source", "digest", "image_size")  # the last is the run's, not the images'
    profile = {name: value for name, value in facts.items() if name not in own}
    return Dataset(
        name=facts["name"],
        digest=facts["digest"],
        source_type="local",
        source=json.dumps(where),
        profile=json.dumps(profile),
    )


def dataset_inputs(record: Record) -> "list[DatasetInput]":
    """Return the images of a run as an input of it."""
    from mlflow.entities import DatasetInput, InputTag

    images = dataset(record)
    context = "evaluation" if record.kind == "floor" else "training"
    return [] if images is None else [DatasetInput(images, [InputTag("mlflow.data.context", context)])]


def grid_images(record: Record, folder: Path) -> Iterator[Path]:
    """Write the picture of a run's views for MLflow's image grid.

    The names are those of `MlflowClient.log_image`, without its random part: sent twice, they are there once.

    Args:
        record: of the run.
        folder: where to write.

    Yields:
        The paths of the picture and of the copy that the grid shows.
    """
    from PIL import Image

    name = f"views+step+0+timestamp+{record.created}+{record.key}"
    with Image.open(record.directory / VIEWS) as picture:
        picture.save(folder / f"{name}.png")
        picture.thumbnail((SHOWN, 4 * SHOWN))
        picture.save(folder / f"{name}+compressed.webp", lossless=True)
    yield folder / f"{name}.png"
    yield folder / f"{name}+compressed.webp"

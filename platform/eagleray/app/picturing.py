"""Draw the pictures of a run or a sweep, and send them to MLflow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from eagleray.app.comparison import analysed, in_directory
from eagleray.pictures.catalogue import Kind
from eagleray.pictures.gallery import drawn
from eagleray.pictures.swept import Swept
from eagleray.pictures.trained import Trained
from eagleray.report.trials import compared
from eagleray.runs.record import Record
from eagleray.storage.mirror import mirrored
from eagleray.tracking import sync_all


def pictured(record: Record, kind: Kind, names: Sequence[str], images: int) -> Iterator[tuple[str, Path | str]]:
    """Draw pictures and send them.

    Args:
        record: of the run or sweep.
        kind: which it is.
        names: of the pictures.
        images: of a run, encoded for them, at most.

    Yields:
        The name of each picture, and its file or why there is none; then the same of the page, and of MLflow if it
        could not be told.

    Raises:
        ConfigError: the run has no checkpoint, or no run of the sweep has measured its metric.
    """
    subject = Trained.of(record, images) if kind == "run" else swept(record)
    with mirrored(record.directory):
        yield from drawn(subject, kind, names)
        for directory, why in sync_all(record.directory).unsent.items():
            yield "not in MLflow", f"{why} (`eagleray sync {directory}` sends them later)"


def swept(record: Record) -> Swept:
    """Read a sweep and analyse it by its metric.

    Raises:
        ConfigError: no run of it has measured that.
    """
    comparison = compared([in_directory(record.directory)])
    return Swept(record, comparison, analysed(comparison))

"""Draw the pictures of a run or a sweep into its artifacts, and the page that shows them."""

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from eagleray.contracts.files import make_folder, write
from eagleray.pictures.catalogue import Absent, Kind, names, picture
from eagleray.pictures.drawing import save
from eagleray.pictures.swept import Swept
from eagleray.pictures.trained import Trained
from eagleray.report.heatmap import literal
from eagleray.report.page import document, figure
from eagleray.runs.record import Record

FOLDER, PAGE = "pictures", "index.html"  # among the artifacts of a run


def drawn(subject: Trained | Swept, kind: Kind, wanted: Iterable[str]) -> Iterator[tuple[str, Path | str]]:
    """Draw pictures, one after the other, and their page.

    Yields:
        The name of each picture, and its file or why there is none; at last those of the page.
    """
    folder = subject.record.artifacts / FOLDER
    make_folder(folder)
    absent: dict[str, str] = {}
    for name in wanted:
        path = folder / f"{name}.png"
        try:
            with literal():
                save(picture(name, kind).draw(subject), path)
        except Absent as why:
            path.unlink(missing_ok=True)  # an older one shows other weights
            absent[name] = str(why)
        yield name, absent.get(name, path)
    write(folder / PAGE, page(subject.record, kind, absent))
    yield "page", folder / PAGE


def page(record: Record, kind: Kind, absent: dict[str, str]) -> str:
    """Return a page with all pictures there are, each with what can be checked by eye.

    Args:
        record: of the run or sweep.
        kind: which it is.
        absent: pictures that have nothing to show, and why.
    """
    title = f"Pictures of {record.experiment}/{record.directory.name}"
    parts = [f"<h1>{escape(title)}</h1>"]
    for name in names(kind):
        path = record.artifacts / FOLDER / f"{name}.png"
        if path.exists():
            its = picture(name, kind)
            caption = its.__doc__.splitlines()[0].rstrip(".")
            parts.append(f"<section>\n<h2>{escape(caption)}</h2>\n{figure(name, path)}")
            parts.append(f"<p>{escape(its.CHECK)}</p>\n</section>")
        elif name in absent:
            parts.append(f'<p class="quiet">{escape(name)}: {escape(absent[name])}.</p>')
    return document(title, parts)

"""The pages of `docs/`, to read offline.

They are beside the package: in the wheel, or in the checkout that is installed.
"""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from eagleray.contracts.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")  # in a checkout, beside `docs/`


@cache
def pages() -> dict[str, Path]:
    """Return the pages: name -> file.

    Raises:
        ConfigError: this installation has none.
    """
    shipped, checkout = PACKAGE / "docs", PACKAGE.parents[1]
    files = [*shipped.glob("*.md"), *([] if shipped.is_dir() else _of_checkout(checkout))]
    if not files:
        raise ConfigError(f"the pages are neither in {shipped} nor in {checkout / 'docs'}: install Eagleray again")
    return {file.stem.lower(): file for file in sorted(files, key=lambda file: file.stem.lower())}


def page(name: str) -> tuple[Path, str]:
    """Return a page, or the section of a page with that heading, and its file.

    Methods and evaluators have sections. Metrics are in the section of their evaluator.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    wanted = name.lower().removesuffix(".md")
    if file := pages().get(wanted):
        return file, file.read_text(encoding="utf-8")
    sections = list(_sections())
    row = re.compile(rf"^\| `{re.escape(wanted)}` \|", re.MULTILINE)  # of a metric, in the table of its evaluator
    for file, heading, text in sections:
        if heading.lower() == wanted or (file.stem == "metrics" and row.search(text)):
            return file, text
    near = difflib.get_close_matches(wanted, [*pages(), *(heading.lower() for _, heading, _ in sections)], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"there is no page {name!r}{hint} (there are: {', '.join(pages())}, and a section for each method)"
    )


def title(file: Path) -> str:
    """Return the first heading of a page."""
    return re.sub(r"^#+ *", "", file.read_text(encoding="utf-8").lstrip().partition("\n")[0])


def _of_checkout(root: Path) -> Iterator[Path]:
    yield from (root / "docs").glob("*.md")
    yield from (root / name for name in BESIDE if (root / name).is_file())


def _sections() -> Iterator[tuple[Path, str, str]]:
    """Yield file, heading and text of each section."""
    for file in pages().values():
        for section in re.split(r"^(?=## )", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            yield file, section.partition("\n")[0].strip("# "), section

"""What an evaluation found: the numbers, how many images and which interval each has, and what explains them.

The final ones are kept among the artifacts of the run: `evaluation.csv` with a row for each number and settings of its
evaluator, and the tables and pictures of evaluators.
"""

import csv
import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from eagleray.config.metrics import TEST
from eagleray.contracts.errors import Damaged
from eagleray.contracts.evaluator import Found, Table
from eagleray.contracts.files import as_csv, make_folder, write
from eagleray.contracts.interval import Interval, wilson
from eagleray.contracts.metric import Metric

FILE = "evaluation.csv"
Value = TypeVar("Value")
HEADS = ("metric", "settings", "value", "images", "low", "high")


@dataclass(frozen=True)
class Number:
    """A measured number."""

    value: float
    images: int  # that it was measured on
    interval: Interval | None = None
    settings: str = ""  # of its evaluator


@dataclass(frozen=True, eq=False)
class Measured(Mapping[str, float]):
    """The numbers of one evaluation by name, with all that is known of them."""

    numbers: Mapping[str, Number] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.numbers[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __or__(self, other: "Measured") -> "Measured":
        return Measured(
            {**self.numbers, **other.numbers},
            (*self.words, *other.words),
            {**self.tables, **other.tables},
            {**self.files, **other.files},
        )

    def only(self, names: Collection[str]) -> "Measured":
        """Return these numbers alone."""
        return replace(self, numbers={name: one for name, one in self.numbers.items() if name in names})

    def on_test(self) -> "Measured":
        """Return the same, named as measured on the test set."""
        words = tuple(f"on the test set, {text}" for text in self.words)
        return Measured(_on_test(self.numbers), words, _on_test(self.tables), _on_test(self.files))

    def keep(self, folder: Path, *, beside: bool = False) -> None:
        """Write everything into the folder of a run's artifacts.

        Args:
            folder: created if it is missing.
            beside: keep numbers that are there already, but for those of the same name and settings.

        Raises:
            Failed: there is no room on the disk, or it cannot be written.
        """
        make_folder(folder)
        before = kept(folder) if beside else []
        rows = {(name, one.settings): one for name, one in (*before, *self.numbers.items())}
        lines = [[*key, one.value, one.images, *(one.interval or ("", ""))] for key, one in rows.items()]
        write(folder / FILE, as_csv([HEADS, *lines]))
        for name, table in self.tables.items():
            write(folder / f"{name}.csv", as_csv(table))
        for name, content in self.files.items():
            write(folder / name, content)


def measured(found: Found, images: int | Mapping[str, int], settings: str, metrics: Mapping[str, Metric]) -> Measured:
    """Return what an evaluator found, with the intervals of shares.

    Args:
        found: by the evaluator.
        images: that it measured, for all numbers or for each.
        settings: of the evaluator.
        metrics: that it declares.
    """
    counts = images if isinstance(images, Mapping) else dict.fromkeys(found.numbers, images)
    shares = {
        name: wilson(value, counts[name]) for name, value in found.numbers.items() if metrics[name].interval == "wilson"
    }
    intervals = {**shares, **found.intervals}
    numbers = {
        name: Number(value, counts[name], intervals.get(name), settings) for name, value in found.numbers.items()
    }
    return Measured(numbers, tuple(found.words), found.tables, found.files)


def kept(folder: Path) -> list[tuple[str, Number]]:
    """Read the numbers that are kept among the artifacts of a run; none of a run that keeps none.

    Raises:
        Damaged: the file has not what was written.
    """
    path = folder / FILE
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return [(row["metric"], _number(row)) for row in rows]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError, csv.Error):
        raise Damaged(f"{path} is damaged or was edited; remove it, and `eagleray evaluate` writes it again") from None


def _on_test(named: Mapping[str, Value]) -> dict[str, Value]:
    return {TEST + name: value for name, value in named.items()}


def _number(row: Mapping[str, str]) -> Number:
    interval = (float(row["low"]), float(row["high"])) if row["low"] else None
    return Number(float(row["value"]), int(row["images"]), interval, row["settings"])

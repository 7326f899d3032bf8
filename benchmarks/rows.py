"""The table of a benchmark that takes long: each row is there as soon as it is known."""

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path


@contextmanager
def written(out: Path | None, *head: str) -> Iterator[Callable[..., None]]:
    """Write a table to a CSV file, or else to the terminal; yields what adds a row, numbers with four digits."""
    with out.open("w", newline="", encoding="utf-8") if out else nullcontext(sys.stdout) as file:
        table = csv.writer(file, lineterminator="\n")

        def add(*row: str | float) -> None:
            table.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in row])
            file.flush()

        add(*head)
        yield add

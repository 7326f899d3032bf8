"""Make the table of docs/reliability.md from the rows in docs/results/reliability.

    python chaos/table.py          # fills in the table, after its line `<!-- table: faults -->`

Each script of this folder writes one CSV, a row for each injection: what was tried, how long it took until the run went
on, and in `broken` what was promised and did not hold. Everything in the table is counted from those rows.
"""

import argparse
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from observed import counted, most, percentile

DOCS = Path(__file__).resolve().parents[1] / "docs"
Row = dict[str, str]


@dataclass(frozen=True)
class Fault:
    """A line of the table; times are sums of columns."""

    title: str
    script: str
    ray: tuple[str, ...] = ()  # seconds of Ray: noticing, starting
    ours: tuple[str, ...] = ()  # all others


FAULTS = (
    Fault("a worker is killed", "workers", ("processes",), ("loop", "step")),
    Fault("the driver of a sweep is killed", "drivers", ("ray",), ("begin", "train")),
    Fault("a node is lost, another joins", "nodes", ("processes",), ("loop", "step")),
    Fault("head or cluster are lost", "heads", ("cluster",), ("seconds",)),
    Fault("the power is cut", "power_cut"),
    Fault("the disk is full, read-only, failing or slow", "storage", (), ("seconds",)),
    Fault("bits rot, files are cut", "rot"),
    Fault("the tracking server is stopped, killed, hung, gone", "servers", (), ("pause",)),
    Fault("a rank, a trial or a loader hangs", "hangs", (), ("told",)),
    Fault("many trials in one sweep", "endurance"),
    Fault("the same again, in parts, on more workers", "repetition"),
    Fault("hostile input", "hostile_input"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    page = DOCS / "reliability.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """Return a page with its table made again."""
    return re.sub(r"(<!-- table: faults -->\n)(?:\|.*\n)*", lambda match: f"{match[1]}{table()}\n", page)


def table() -> str:
    head = ["", "fault", "script", "tried", "broken", "95 %: at most", "Ray's start, s: p50, p95", "ours, s: p50, p95"]
    lines = [line(number, fault, read(fault.script)) for number, fault in enumerate(FAULTS, 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def line(number: int, fault: Fault, rows: Sequence[Row]) -> list[str]:
    """Return the cells of a fault."""
    script = f"[{fault.script}](../chaos/{fault.script}.py)"
    if not rows:
        return [str(number), fault.title, script, "not yet", "", "", "", ""]
    tried, broken = counted(rows)
    times = [spent(rows, columns) for columns in (fault.ray, fault.ours)]
    bound = f"{100 * most(broken, tried):.2g} %"
    return [str(number), fault.title, script, f"{tried:,}", str(broken), bound, *times]


def spent(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return median and 95th percentile of the sums of some columns."""
    sums = [sum(float(row[name]) for name in columns) for row in rows if all(row.get(name) for name in columns)]
    return f"{percentile(sums, 0.5):.1f}, {percentile(sums, 0.95):.1f}" if columns and sums else ""


def read(name: str) -> list[Row]:
    path = DOCS / "results/reliability" / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()

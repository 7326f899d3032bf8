"""What a run says goes into its record: local runs, actors of a sweep and groups of workers all write it like this."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from eagleray.runs.record import Record

if TYPE_CHECKING:
    from eagleray.contracts.report import Report


def recorded(reports: "Iterator[Report]", record: Record) -> "Generator[Report]":
    """The same reports, each epoch written to the record before it is passed on, and the end of the run too.

    A resumed run comes by epochs that it has told already; those that say nothing new are not written again.

    Raises:
        Diverged: passed on, once the record says that the run failed.
    """
    from eagleray.contracts.report import Diverged

    told = {row["step"]: row for row in record.metrics()}
    try:
        for report in reports:
            if report.epoch_ended:
                _append(record, report, told.get(report.progress.step, {}))
            if report.done:
                record.finish("finished", summary=report.numbers)
            yield report
    except Diverged as error:
        record.finish("failed", str(error))
        raise


def _append(record: Record, report: "Report", before: dict[str, Any]) -> None:
    if all(before.get(name) == value for name, value in report.metrics.items()):
        return
    record.append(report.progress.step, report.numbers, report.progress.epoch)

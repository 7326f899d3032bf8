"""Write the reports of a run to its record: for local runs, trials of a sweep and groups of workers."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from eagleray.runs.record import Record

if TYPE_CHECKING:
    from eagleray.contracts.report import Report


def recorded(reports: "Iterator[Report]", record: Record) -> "Generator[Report]":
    """Write each epoch and the end of the run to the record, then pass the report on.

    A resumed run repeats epochs that it has reported already; those without new numbers are not written again.

    Raises:
        Diverged: raised again after the record says that the run failed.
    """
    from eagleray.contracts.report import Diverged

    written = {row["step"]: row for row in record.metrics()}
    try:
        for report in reports:
            if report.epoch_ended:
                _append(record, report, written.get(report.progress.step, {}))
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

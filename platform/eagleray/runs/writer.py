"""Write the reports of a run to its record.

The run may be a local one, a trial of a sweep or a group of workers.
"""

from collections.abc import Generator, Iterator
from datetime import datetime
from typing import Any

from eagleray.config import Run
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Report
from eagleray.data.images import Data
from eagleray.runs.checkpoint import checkpoints, step_of
from eagleray.runs.failures import Failure, keep_error
from eagleray.runs.record import CHANGES, SYSTEM, WORKERS, Record
from eagleray.runs.usage import Usage


def recorded(reports: Iterator[Report], record: Record) -> Generator[Report]:
    """Record the reports of a run and pass them on.

    Each epoch and the end of the run are written. A resumed run repeats epochs that it has reported already; those
    without new numbers are not written again.

    An error is raised again after the record says that the run failed, and why; but for one of the machines, after
    which the run may be tried again.
    """
    written = {row["step"]: row for row in record.metrics()}
    usage = Usage()
    try:
        for report in reports:
            if report.epoch_ended:
                _append(record, report, written.get(report.progress.step, {}))
                record.append(report.progress.step, usage.measured(), report.progress.epoch, file=SYSTEM)
            if report.done:
                record.finish("finished", summary=report.numbers)
            yield report
    except Exception as error:
        if not Failure.of(error).is_tried_again:
            keep_error(record, error)
        raise


def keep_data(run: Run, record: Record, data: Data) -> None:
    """Keep which images a run uses, and the sizes that its file leaves open.

    Raises:
        ConfigError: as `check_images`.
    """
    check_images(record, data)
    own = {"name": run.data.name, "source": run.data.config.model_dump(mode="json")}
    record.keep_data({**own, **data.facts(), "image_size": run.image_size or data.info.image_size})


def keep_workers(run: Run, record: Record, workers: int) -> None:
    """Keep that a run goes on with another number of workers than before."""
    before = int(record.tags.get(WORKERS, run.workers))
    if workers == before:
        return
    saved = checkpoints(record.directory)
    step = step_of(saved[-1]) if saved else 0
    change = f"from {before} to {workers} at step {step}, {datetime.now():%Y-%m-%d %H:%M:%S}"
    changes = "; ".join(filter(None, [record.tags.get(CHANGES), change]))
    record.tag({WORKERS: str(workers), CHANGES: changes})
    record.append(step, {"system/workers": workers}, file=SYSTEM)


def check_images(record: Record, data: Data) -> None:
    """Refuse to continue a run with other images.

    Raises:
        ConfigError: images or labels were added, removed or changed since the run began.
    """
    before = record.data()
    if before is not None and before["digest"] != data.digest:
        raise ConfigError(
            f"{record.directory} began with other images than there are now (its data.json has {before['images']}, and "
            f"now there are {data.facts()['images']}): put them back, or start a new one"
        )


def _append(record: Record, report: Report, before: dict[str, Any]) -> None:
    if all(before.get(name) == value for name, value in report.metrics.items()):
        return
    record.append(report.progress.step, report.numbers, report.progress.epoch)

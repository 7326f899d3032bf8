"""Start runs and sweeps.

Their results are kept and sent to MLflow.
"""

import fcntl
import shutil
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eagleray.app.conclude import concluded, keep_encoder
from eagleray.app.directories import REFUSAL, new_directory
from eagleray.app.notify import Event, notified, notify
from eagleray.config import Run, Sweep
from eagleray.config.metrics import headlines, meanings, metrics_of, shipped
from eagleray.config.settings import settings
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import make_folder, writable
from eagleray.contracts.report import Report, Stopped
from eagleray.data.description import cautioned, described
from eagleray.loop import train
from eagleray.report.analysis import Analysis
from eagleray.report.finding import finding
from eagleray.report.numbers import number
from eagleray.runs.assemble import assemble
from eagleray.runs.begun import left
from eagleray.runs.evaluation import collapsed
from eagleray.runs.failures import keep_end
from eagleray.runs.hangs import HangWatch, pulsing, signalled
from eagleray.runs.notice import Notice
from eagleray.runs.preview import VIEWS, preview
from eagleray.runs.record import Record
from eagleray.runs.writer import check_images, keep_data, recorded
from eagleray.storage.mirror import forget, mirrored
from eagleray.tracking import Sender, store_uri

if TYPE_CHECKING:
    from eagleray.ray_backend.callbacks import Watch

Display = Callable[[Iterator[Report], str, str], Iterator[Report]]  # reports, run, what was read -> the same reports


def launch_run(
    run: Run, place: Path | None, folder: Path, display: Display, *, address: str | None = None
) -> tuple[Path, str | None]:
    """Train or continue a run, and export its encoder.

    Args:
        run: everything that defines it.
        place: its directory, created if it is missing; None: a new one in `folder`.
        folder: of the runs of its experiment.
        display: shows the reports and passes them on.
        address: of a Ray cluster to train on; None: this machine.

    Returns:
        Its directory, and what could not be sent to MLflow yet (None if everything was).

    Raises:
        ConfigError: a setting does not fit; no directory is left behind.
        Diverged: the loss became NaN or infinite.
    """
    store_uri(run.tracking.uri)
    if run.workers > 1 or address is not None:
        import_module("eagleray.ray_backend")  # refuses a Ray that it does not know
    device = None if address is None else torch.device("cpu")  # a cluster has GPUs of its own
    built = assemble(run, device=device)  # raises every config error before a directory is created
    data = built.data
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    caution = cautioned(data, run.labels)
    with _directory(place, folder, run.method.title) as directory:
        if (directory / "record.json").exists():
            check_images(Record.open(directory), data)
        record = Record.create(
            directory,
            name=directory.name,
            experiment=run.tracking.experiment,
            params=settings(run),
            run=run.file(),
            tags={
                "data": "; ".join(filter(None, [described(data, built.loader.info.image_size), caution])),
                "headlines": " ".join(headlines(metrics_of(run))),
            },
            meanings=meanings(run),
            uri=run.tracking.uri,
        )
        with Sender(run.tracking.uri) as sender, notified(run, directory), _end_kept(directory):
            preview(run, record.artifacts / VIEWS, data)
            keep_data(run, record, data)
            sender.add(record)
            _train(run, record, lambda notice: train(run, directory, data=data, notice=notice), display, address)
            keep_encoder(record)
    notify(run, directory, "finished", f"finished: {_headlines(record.summary)}")
    return directory, sender.message


def launch_sweep(
    sweep: Sweep, place: Path | None, folder: Path, watch: "Watch | None", *, resume: bool, address: str | None
) -> tuple[Path, Analysis, str | None]:
    """Run or continue a sweep, and write its report.

    `place` and `folder` are as for `launch_run`.

    Returns:
        Its directory, the analysis, and what could not be sent to MLflow yet (None if everything was).

    Raises:
        ConfigError: a setting does not fit; no directory is left behind.
        KeyboardInterrupt: a person stopped it.
    """
    from eagleray.ray_backend.sweep import sweep as on_ray

    uri = sweep.run.get("tracking", {}).get("uri")
    store_uri(uri)
    with (
        _directory(place, folder) as directory,
        Sender(uri) as sender,
        notified(sweep, directory),
        _end_kept(directory),
    ):
        watched = SenderWatch(watch, directory, sender)
        on_ray(sweep, directory, resume=resume, address=address, watch=watched)
        sender.add(Record.open(directory))
        analysis = concluded(sweep, directory, watched)
    notify(sweep, directory, *_outcome(sweep, directory, analysis))
    return directory, analysis, sender.message


def _outcome(sweep: Sweep, directory: Path, analysis: Analysis) -> tuple[Event, str]:
    if runs_left := left(sweep, directory):
        return "budget", f"has used up its budget; runs left: {'; '.join(runs_left)}"
    event: Event = "finished" if analysis.winner else "failed"
    return event, f"{event}: {finding(analysis)}"


class SenderWatch:
    """Adds a sweep to the sender once it is recorded.

    Everything is passed on to another watch.
    """

    def __init__(self, watch: "Watch | None", directory: Path, sender: Sender):
        self.watch, self.directory, self.sender, self.is_known = watch, directory, sender, False

    def data(self, read: Sequence[str]) -> None:
        """Pass on what was read (see `ray_backend.callbacks.Watch`)."""
        if self.watch:
            self.watch.data(read)

    def trial(
        self,
        label: str,
        params: Mapping[str, Any],
        state: str,
        epoch: int,
        epochs: int | None,
        metrics: Mapping[str, float],
    ) -> None:
        """Pass on the state of a trial (see `ray_backend.callbacks.Watch`)."""
        if not self.is_known and (self.directory / "record.json").exists():
            self.sender.add(Record.open(self.directory))
            self.is_known = True
        if self.watch:
            self.watch.trial(label, params, state, epoch, epochs, metrics)

    def floor(self, name: str, metrics: Sequence[Mapping[str, float]]) -> None:
        """Pass on a measured floor (see `ray_backend.callbacks.Watch`)."""
        if self.watch:
            self.watch.floor(name, metrics)

    def work(self, what: str, done: int, total: int) -> None:
        """Pass on how much of some work is done (see `ray_backend.callbacks.Watch`)."""
        if self.watch:
            self.watch.work(what, done, total)


def _train(
    run: Run, record: Record, local: Callable[[Notice], Iterator[Report]], display: Display, address: str | None
) -> None:
    if run.workers > 1 or address is not None:
        from eagleray.ray_backend.workers import train_on_workers

        reports = train_on_workers(run, record.directory, address=address)
    else:
        reports = _train_here(record, local)
    may_collapse, loss = run.notify is not None, run.collapsed_loss
    with closing(reports):
        for report in display(reports, f"{run.method.title} on {run.data.title}", record.tags["data"]):
            if may_collapse and report.epoch_ended:
                why = collapsed(record.metrics(), loss, classes=run.labels is not None)
                if why:
                    may_collapse = False
                    notify(run, record.directory, "collapsed", f"has collapsed at epoch {report.progress.epoch}: {why}")


def _train_here(record: Record, local: Callable[[Notice], Iterator[Report]]) -> Generator[Report]:
    """Train in this process, which an interrupt ends after the step that is under way."""
    notice = Notice()
    heeded = notice.heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    watch = HangWatch(record.directory, signalled, may_end=False)  # it is this process that would be ended
    with watch, heeded:
        yield from recorded(pulsing(local(notice), record.directory), record)


def _headlines(metrics: Mapping[str, float]) -> str:
    names = ("loss", *headlines(shipped()))
    return ", ".join(f"{name} {number(metrics[name])}" for name in names if name in metrics)


@contextmanager
def _end_kept(directory: Path) -> Iterator[None]:
    """Keep how the run or sweep in a directory ends, if something ends it early; a note says it to a person."""
    try:
        yield
    except BaseException as error:
        if (directory / "record.json").exists():
            error.add_note(keep_end(Record.open(directory), error))
        raise


@contextmanager
def _directory(place: Path | None, folder: Path, *words: str) -> Iterator[Path]:
    """Lock a directory for this process; without a place, a new one in a folder.

    Delete what was created if nothing was recorded, or if a config error comes before the first metrics.

    Raises:
        Stopped: a person stopped what --resume can continue.
        KeyboardInterrupt: a person stopped anything else.
    """
    wanted = place or folder
    missing = [path for path in (wanted, *wanted.parents) if not path.exists()]
    make_folder(wanted, REFUSAL)
    directory = place or new_directory(folder, *words)
    with writable(directory / "lock", REFUSAL):
        lock = open(directory / "lock", "a")  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process trains in {directory}; wait for its end, or stop it") from None
        try:
            with mirrored(directory, is_alone=True):
                yield directory
        except BaseException as error:
            is_begun = (directory / "record.json").exists()
            is_refused = isinstance(error, ConfigError) and not any(directory.rglob("metrics.jsonl"))
            if (place is None or place in missing) and (is_refused or not is_begun):
                forget(directory)
                shutil.rmtree(directory, ignore_errors=True)  # somebody else may have removed it
                _remove_empty(path for path in missing if path != place)
            if isinstance(error, KeyboardInterrupt):
                raise _stopped(directory, is_begun=is_begun) from None
            raise


def _stopped(directory: Path, *, is_begun: bool) -> KeyboardInterrupt:
    """Tell whether a run or sweep that a person stopped can be continued."""
    if not is_begun:
        return KeyboardInterrupt("nothing was recorded yet")
    if Record.open(directory).state == "finished":
        return KeyboardInterrupt(f"{directory} had finished; `eagleray sync` sends what MLflow lacks")
    return Stopped()


def _remove_empty(directories: Iterable[Path]) -> None:
    for path in directories:
        if any(path.iterdir()):
            return
        path.rmdir()

"""Run the loop on several workers.

Each is one process, negatives are gathered, and a restart continues from the newest checkpoint.
"""

import asyncio
import platform
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from eagleray.blocks import distributed
from eagleray.config import Run, read_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import write
from eagleray.contracts.paths import address_of, located, shared
from eagleray.contracts.report import Diverged, Report
from eagleray.loop import train
from eagleray.ray_backend.cluster import connected, wait_for_room
from eagleray.ray_backend.failures import KILLED, as_failed, failure_of
from eagleray.ray_backend.probe import check_nodes
from eagleray.ray_backend.shared_storage import clear, storage_of
from eagleray.ray_backend.signals import here, send
from eagleray.runs.assemble import build_method, fitted, images_of
from eagleray.runs.checkpoint import checkpoints
from eagleray.runs.failures import Failure, failure_in, keep, keep_error, kills_for_memory
from eagleray.runs.hangs import HangWatch, pulsing
from eagleray.runs.profile import Profile
from eagleray.runs.record import Record
from eagleray.runs.writer import keep_data, recorded
from eagleray.storage.copy import of_record
from eagleray.storage.mirror import flush, mirrored, refresh

RESTARTS = 3  # how often a group that lost a worker is started again without progress


def train_on_workers(
    run: Run, directory: Path, *, address: str | None = None, profile: int | None = None
) -> Iterator[Report]:
    """Train with `run.workers` processes.

    Yield the reports of the first one, as the loop itself would.

    The first worker writes to the record, which must exist already (`Record.create`).

    Args:
        run: everything that defines the run.
        directory: of the run; on a cluster, one that all machines share.
        address: of a Ray cluster; None: this machine.
        profile: train this many steps and write what takes their time (`runs.profile`).

    Raises:
        ConfigError: the run does not fit the data or the machines, or a node lacks what it needs; nothing was started.
        Diverged: the loss became NaN or infinite.
    """
    data = images_of(run)  # fills the workers' cache
    build_method(run, fitted(run, data.info))
    with connected(address):
        cpus, gpus = _share(run, local=address is None)
        if address is not None:
            wait_for_room(run.workers, cpus, gpus)
            check_nodes([run], directory.absolute())
        with HangWatch(directory, send):
            yield from group(run, directory.absolute(), cpus=cpus, gpus=gpus, profile=profile)


def group(run: Run, directory: Path, *, cpus: float, gpus: float, profile: int | None = None) -> Generator[Report]:
    """Run a group of workers and yield its reports.

    Each worker has some CPUs and GPUs. Ray must be connected.

    After an epoch the group waits until the next report is asked for; closing the generator then ends the group. If a
    worker is killed, all start again from the newest checkpoint.
    """
    free(directory)
    flush(directory)  # the workers read the record, and that the run was opened again
    exchange: Any = ray.remote(Exchange).options(num_cpus=0).remote()
    thread = FitThread(partial(_trainer, run, directory, exchange, cpus, gpus, profile), directory, exchange)
    thread.start()
    waiting: int | None = None  # the step after which the group waits for an answer
    try:
        while (values := ray.get(exchange.next_report.remote())) is not None:
            report = report_from_dict(dict(values))
            if report.epoch_ended:
                refresh(directory, of_record)
            waiting = report.progress.step if report.epoch_ended else None
            yield report
            if waiting is not None:
                exchange.answer.remote(waiting, True)
    except ray.exceptions.RayError as error:  # the messenger of the group was lost
        raise as_failed(failure_of(error)) from error
    except GeneratorExit:
        if waiting is not None:
            exchange.answer.remote(waiting, False)
            thread.join()
        raise
    finally:
        ray.kill(exchange)
    refresh(directory, of_record)
    (directory / ".workers").unlink(missing_ok=True)
    clear(directory)
    failure = failure_in(Record.open(directory))
    if failure is None and thread.failure is not None:
        failure = failure_of(thread.failure)
    if failure is not None:
        raise as_failed(failure) from thread.failure


def free(directory: Path) -> None:
    """End the workers whose driver was killed.

    Otherwise they would occupy their share of the machines forever: Ray frees it only with the help of its dashboard,
    which may not be installed.
    """
    note = directory / ".workers"
    if note.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(note.read_text())))
        note.unlink()


class Exchange:
    """Messages between the first worker and the driver.

    They are in a separate actor, so that either may be killed.
    """

    def __init__(self):
        self.reports: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.answers: dict[int, asyncio.Future[bool]] = defaultdict(asyncio.get_running_loop().create_future)

    async def send(self, report: dict[str, Any] | None) -> None:
        """Send a report, or None at the end."""
        await self.reports.put(report)

    async def next_report(self) -> dict[str, Any] | None:
        """Wait for the next report and return it."""
        return await self.reports.get()

    async def may_continue(self, step: int) -> bool:
        """Wait for the driver's answer after a step.

        A group that was started again gets the same answer.
        """
        return await asyncio.shield(self.answers[step])

    async def answer(self, step: int, may_continue: bool) -> None:
        """Answer whether to continue after a step."""
        if not self.answers[step].done():
            self.answers[step].set_result(may_continue)


class FitThread(threading.Thread):
    """A thread that calls `fit`.

    The call returns only at the end of the training.
    """

    def __init__(self, trainer: Callable[[], TorchTrainer], directory: Path, exchange: Any):
        super().__init__(daemon=True)
        self.trainer, self.directory, self.exchange = trainer, directory, exchange
        self.failure: Exception | None = None

    def run(self) -> None:
        """Call `fit`, and send None when it has ended.

        Ray gives up after RESTARTS losses in all, of which a long run on spot machines has hundreds. So it is called
        again if there was progress meanwhile.
        """
        while True:
            before = checkpoints(self.directory)
            try:
                self.trainer().fit()
            except Exception as error:
                refresh(self.directory)
                if failure_of(error).is_tried_again and checkpoints(self.directory) != before:
                    continue
                self.failure = error  # raised again where the reports are read
            break
        if ray.is_initialized():  # else a person has stopped the driver, and this call would start another Ray
            self.exchange.send.remote(None)


def work(config: dict[str, Any]) -> None:
    """Run the loop in each worker.

    The first one also writes the record and sends its reports to the driver.
    """
    directory = Path(located(config["directory"]))
    with _in_step(directory):
        _work(config, directory)


@contextmanager
def _in_step(directory: Path) -> Iterator[None]:
    """Have what the first worker has of a run on the machines of all workers."""
    is_first = distributed.rank() == 0
    with mirrored(directory) if is_first else nullcontext():
        if address_of(directory) is not None:
            if is_first:
                flush(directory)
            distributed.barrier()
            if not is_first:
                refresh(directory)
            distributed.barrier()
        yield


def _work(config: dict[str, Any], directory: Path) -> None:
    torch.set_num_threads(config["threads"])
    run, exchange = read_run(config["run"]), config["exchange"]
    is_first, steps, record = distributed.rank() == 0, config["profile"], Record.open(directory)
    if failure_in(record) is not None:
        return  # in an earlier start of this group: the same would happen again
    node, kills = config["kills"]
    if platform.node() == node and kills_for_memory() != kills:
        keep(record, Failure("out of memory", KILLED), KILLED)
        return
    loop = partial(Profile(run, steps).reports, train) if steps else partial(train, run)
    data = images_of(run)
    reports = pulsing(loop(directory, device=get_device(), data=data), directory, distributed.rank(), here())
    if is_first:
        keep_data(run, record, data)
        pg = get_current_placement_group()
        assert pg is not None
        write(directory / ".workers", pg.id.hex())
        reports = recorded(reports, record)
    try:
        for report in reports:
            if is_first:
                if report.epoch_ended:
                    flush(directory)
                ray.get(exchange.send.remote(report_to_dict(report)))
            if report.epoch_ended and not report.done:
                may_continue = torch.tensor(1.0, device=get_device())
                if is_first:
                    may_continue.fill_(ray.get(exchange.may_continue.remote(report.progress.step)))
                if not distributed.broadcast(may_continue):
                    return
    except Diverged:
        return  # all workers have the same loss, and a restart would not change it; the reason is in the record
    except Exception as error:
        if not Failure.of(error).is_tried_again:
            keep_error(record, error)
        raise  # ends the other workers, too


def report_to_dict(report: Report) -> dict[str, Any]:
    """Return a report as plain values.

    They can be sent to another process.
    """
    return {**asdict(report), "checkpoint": shared(report.checkpoint) if report.checkpoint else None}


def report_from_dict(values: dict[str, Any]) -> Report:
    """Return the report that was converted by `report_to_dict`."""
    checkpoint = Path(located(values["checkpoint"])) if values["checkpoint"] else None
    return Report(**{**values, "progress": Progress(**values["progress"]), "checkpoint": checkpoint})


def _trainer(run: Run, directory: Path, exchange: Any, cpus: float, gpus: float, profile: int | None) -> TorchTrainer:
    clear(directory)  # Ray's own files; the loop keeps the checkpoints
    return TorchTrainer(
        work,
        train_loop_config={
            "run": run.file(),
            "directory": shared(directory),
            "threads": run.threads or max(1, int(cpus)),
            "exchange": exchange,
            "kills": (platform.node(), kills_for_memory()),
            "profile": profile,
        },
        scaling_config=ScalingConfig(
            num_workers=run.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(name="ray", **storage_of(directory), failure_config=FailureConfig(max_failures=RESTARTS)),
    )


def _share(run: Run, local: bool) -> tuple[float, float]:
    """Return the CPUs and GPUs of each worker."""
    available = ray.cluster_resources()
    gpus = available.get("GPU", 0)
    if run.device == "cpu" or (run.device == "auto" and not gpus):
        # On a single machine with fewer cores than workers, they share the cores.
        return (min(1.0, available["CPU"] / run.workers) if local else 1.0), 0.0
    if local and gpus < run.workers:
        raise ConfigError(
            f"workers={run.workers} need a GPU each, and there is {gpus:g}; "
            f"set workers={max(1, int(gpus))} or device=cpu"
        )
    return 1.0, 1.0

"""Run the loop on several workers.

Each is one process, negatives are gathered, and a restart continues from the newest checkpoint.
"""

import asyncio
import platform
import signal
import threading
import time
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
from ray.train.torch import TorchConfig, get_device
from ray.util import get_node_ip_address
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eagleray.blocks import distributed
from eagleray.config import Run, read_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import write
from eagleray.contracts.paths import address_of, located, shared
from eagleray.contracts.report import Diverged, Preempted, Report
from eagleray.loop import train
from eagleray.ray_backend.cluster import connected, wait_for_room
from eagleray.ray_backend.elastic import Growth
from eagleray.ray_backend.failures import KILLED, as_failed, failure_of
from eagleray.ray_backend.preemption import NOTICE, listen
from eagleray.ray_backend.probe import check_nodes
from eagleray.ray_backend.shared_storage import clear, storage_of
from eagleray.ray_backend.signals import here, send
from eagleray.ray_backend.spare import HOOK, ask_for_spare
from eagleray.ray_backend.trainer import FileConfig, Trainer
from eagleray.runs.assemble import build_method, fitted, images_of
from eagleray.runs.checkpoint import checkpoints
from eagleray.runs.failures import Failure, failure_in, keep, keep_error, kills_for_memory
from eagleray.runs.hangs import HangWatch, beats_in, forget_pulses, pulsing
from eagleray.runs.notice import Notice
from eagleray.runs.profile import Profile
from eagleray.runs.record import Record
from eagleray.runs.writer import keep_data, keep_workers, recorded
from eagleray.storage.copy import of_record
from eagleray.storage.mirror import flush, mirrored, refresh

PATIENCE = 30.0  # seconds in which a group that is ended may save what it has
END, GO, AGAIN = range(3)  # the driver's answers after an epoch
SPARE_AFTER = 60.0  # seconds of work after which a worker gets a spare, which costs seconds of a core
ALIVE = 0  # a signal that only asks whether a process is there
LOOPBACK = "127.0.0.1"
RESTARTS = 3  # how often a group that lost a worker is started again without progress


def train_on_workers(
    run: Run, directory: Path, *, address: str | None = None, profile: int | None = None
) -> Generator[Report]:
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
            wait_for_room(run.fewest_workers, cpus, gpus)
            check_nodes([run], directory.absolute())
        notice = Notice()  # an interrupt may come where Python can only drop it, as in a `__del__` of Ray's; this stays
        heeded = notice.heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with HangWatch(directory, send), heeded:
            yield from group(run, directory.absolute(), cpus=cpus, gpus=gpus, profile=profile, notice=notice)


def group(
    run: Run,
    directory: Path,
    *,
    cpus: float,
    gpus: float,
    profile: int | None = None,
    notice: Notice | None = None,
) -> Generator[Report]:
    """Run a group of workers and yield its reports.

    Each worker has some CPUs and GPUs. Ray must be connected.

    After an epoch the group waits until the next report is asked for; closing the generator then ends the group. If a
    worker is killed, all start again from the newest checkpoint. Notice, an interrupt and closing at another time end
    it after the step that is under way.
    """
    free(directory)
    flush(directory)  # the workers read the record, and that the run was opened again
    notice = notice or Notice()
    with_driver = NodeAffinitySchedulingStrategy(here(), soft=False)  # another node may be lost
    exchange: Any = ray.remote(Exchange).options(num_cpus=0, scheduling_strategy=with_driver).remote()
    trainer = partial(_trainer, run, directory, exchange, cpus, gpus, profile)
    thread, growth = FitThread(trainer, directory, exchange), Growth(run.workers, _resources(cpus, gpus))
    thread.start()
    waiting: int | None = None  # the step after which the group waits for an answer
    try:
        while (values := _next(exchange, notice)) is not None:
            workers, report = values["workers"], report_from_dict(values["report"])
            if report.epoch_ended:
                refresh(directory, of_record)
            waiting = report.progress.step if report.epoch_ended else None
            yield report
            if waiting is not None:
                exchange.answer.remote(waiting, AGAIN if growth.is_possible(workers) else GO)
    except ray.exceptions.RayError as error:  # the messenger of the group was lost
        raise as_failed(failure_of(error)) from error
    except GeneratorExit:
        if waiting is not None:
            exchange.answer.remote(waiting, END)
            thread.join()
        else:
            _save(directory)
        raise
    except (KeyboardInterrupt, Preempted):
        _save(directory)
        raise
    finally:
        thread.end()
        ray.kill(exchange)
    refresh(directory, of_record)
    (directory / ".workers").unlink(missing_ok=True)
    clear(directory)
    failure = failure_in(Record.open(directory))
    if failure is None and thread.failure is not None:
        failure = failure_of(thread.failure)
    if failure is not None:
        raise as_failed(failure) from thread.failure


def _next(exchange: Any, notice: Notice) -> dict[str, Any] | None:
    with notice.interrupting():
        return ray.get(exchange.next_report.remote())


def _save(directory: Path) -> None:
    """Let the workers of a run save what they have, as long as they answer and it takes less than PATIENCE."""
    before, end = checkpoints(directory), time.monotonic() + PATIENCE
    told = [beat for beat in beats_in(directory) if send(beat, signal.SIGTERM)]
    while any(send(beat, ALIVE) for beat in told) and checkpoints(directory) == before and time.monotonic() < end:
        time.sleep(0.1)


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
        self.answers: dict[int, asyncio.Future[int]] = defaultdict(asyncio.get_running_loop().create_future)

    async def send(self, report: dict[str, Any] | None) -> None:
        """Send a report, or None at the end."""
        await self.reports.put(report)

    async def next_report(self) -> dict[str, Any] | None:
        """Wait for the next report and return it."""
        return await self.reports.get()

    async def answered(self, step: int) -> int:
        """Wait for the driver's answer after a step.

        A group that was started again gets the same answer.
        """
        return await asyncio.shield(self.answers[step])

    async def answer(self, step: int, answer: int) -> None:
        """Answer whether to END after a step, to GO on, or to start AGAIN with more workers."""
        if not self.answers[step].done():
            self.answers[step].set_result(answer)


class FitThread(threading.Thread):
    """A thread that calls `fit`.

    The call returns only at the end of the training.
    """

    def __init__(self, trainer: Callable[[], Trainer], directory: Path, exchange: Any):
        super().__init__(daemon=True)
        self.trainer, self.directory, self.exchange = trainer, directory, exchange
        self.failure: Exception | None = None
        self.fitted: Trainer | None = None
        self.is_over, self.node = False, here()  # nobody asks for reports any more; the node of this Ray

    def run(self) -> None:
        """Call `fit`, and send None when it has ended.

        Ray gives up after RESTARTS losses in all, of which a long run on spot machines has hundreds. So it is called
        again if there was progress meanwhile.
        """
        while True:
            before = checkpoints(self.directory)
            try:
                self.fitted = self.trainer()
                if self.is_over:
                    self.fitted.end()
                self.fitted.fit()
            except Exception as error:
                is_wanted = here() == self.node and not self.is_over  # else it would start, or use, another Ray
                if is_wanted:
                    refresh(self.directory)
                if is_wanted and failure_of(error).is_tried_again and checkpoints(self.directory) != before:
                    continue
                self.failure = error  # raised again where the reports are read
            break
        if here() == self.node:  # else a person has stopped the driver, and this call would start another Ray
            self.exchange.send.remote(None)

    def end(self) -> None:
        """End the group and wait for this thread.

        Else it would call Ray after the end of the connection, and Ray then ends the process where it is.
        """
        self.is_over = True
        if self.fitted:
            self.fitted.end()
        self.join(PATIENCE)


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
    run, exchange, workers = read_run(config["run"]), config["exchange"], distributed.world_size()
    is_first, steps, record = distributed.rank() == 0, config["profile"], Record.open(directory)
    if failure_in(record) is not None:
        return  # in an earlier start of this group: the same would happen again
    node, kills = config["kills"]
    if platform.node() == node and kills_for_memory() != kills:
        keep(record, Failure("out of memory", KILLED), KILLED)
        return
    ray.get(ray.get_runtime_context().current_actor.execute.remote(listen))  # in the main thread, and this is another
    data, own = images_of(run), run.model_copy(update={"workers": workers, "min_workers": None})
    loop = partial(Profile(own, steps).reports, train) if steps else partial(train, own)
    reports = pulsing(
        loop(directory, device=get_device(), data=data, notice=NOTICE), directory, distributed.rank(), here()
    )
    if is_first:
        forget_pulses(directory, workers)
        keep_data(run, record, data)
        keep_workers(run, record, workers)
        pg = get_current_placement_group()
        assert pg is not None
        write(directory / ".workers", pg.id.hex())
        reports = recorded(reports, record)
    spare = threading.Timer(config["spare_after"], ask_for_spare)
    spare.daemon = True
    spare.start()
    try:
        for report in reports:
            if is_first:
                if report.epoch_ended:
                    flush(directory)
                ray.get(exchange.send.remote({"report": report_to_dict(report), "workers": workers}))
            if report.epoch_ended and not report.done:
                answer = torch.tensor(float(GO), device=get_device())
                if is_first:
                    answer.fill_(ray.get(exchange.answered.remote(report.progress.step)))
                answer = int(distributed.broadcast(answer))
                if answer == END:
                    return
                if answer == AGAIN:
                    NOTICE.came = True
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


def _trainer(run: Run, directory: Path, exchange: Any, cpus: float, gpus: float, profile: int | None) -> Trainer:
    clear(directory)  # Ray's own files; the loop keeps the checkpoints
    backend, ours = "nccl" if gpus else "gloo", str(directory / "ray")
    is_one_machine = get_node_ip_address() == LOOPBACK
    return Trainer(
        work,
        train_loop_config={
            "run": run.file(),
            "directory": shared(directory),
            "threads": run.threads or max(1, int(cpus)),
            "exchange": exchange,
            "kills": (platform.node(), kills_for_memory()),
            "profile": profile,
            "spare_after": SPARE_AFTER,
        },
        scaling_config=_scaling(run, cpus, gpus),
        torch_config=FileConfig(backend=backend, folder=ours) if is_one_machine else TorchConfig(backend=backend),
        run_config=RunConfig(
            name="ray",
            **storage_of(directory),
            failure_config=FailureConfig(max_failures=RESTARTS),
            worker_runtime_env={"env_vars": HOOK},
        ),
    )


def _scaling(run: Run, cpus: float, gpus: float) -> ScalingConfig:
    return ScalingConfig(
        num_workers=run.workers if run.min_workers is None else (run.min_workers, run.workers),
        use_gpu=gpus > 0,
        resources_per_worker=_resources(cpus, gpus),
    )


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


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

"""The loop on several workers: one process each, gathered negatives, restarts from the newest checkpoint."""

import asyncio
import shutil
import threading
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from eagleray.blocks import distributed
from eagleray.config import Run, read_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Diverged, Report
from eagleray.loop import train
from eagleray.ray_backend.cluster import connected
from eagleray.runs.assemble import build_method, fitted, images_of
from eagleray.runs.record import Record
from eagleray.runs.writer import recorded

RESTARTS = 3  # times that a group of workers which lost one is started again


def train_on_workers(run: Run, directory: Path, *, address: str | None = None) -> Iterator[Report]:
    """Trains with `run.workers` processes; yields what the first of them says, as the loop itself would.

    The first worker writes the record, which must be in `directory` already (`Record.create`).

    Args:
        run: everything that defines the run.
        directory: of the run; on a cluster, one that all machines share.
        address: of a Ray cluster; None: this machine.

    Raises:
        ConfigError: the run does not fit the data, or the machines; nothing was started.
        Diverged: the loss became NaN or infinite.
    """
    data = images_of(run)  # fills the workers' cache
    build_method(run, fitted(run, data.info))
    with connected(address):
        cpus, gpus = _share(run, local=address is None)
        yield from group(run, directory.absolute(), cpus=cpus, gpus=gpus)


def group(run: Run, directory: Path, *, cpus: float, gpus: float) -> Generator[Report]:
    """The reports of a group of workers, each with so many CPUs and GPUs; to be used where Ray is.

    After an epoch the group waits until its next report is asked for; closed there, the generator ends the group. If a
    worker is killed, all start again from the newest checkpoint.
    """
    free(directory)
    exchange: Any = ray.remote(Exchange).options(num_cpus=0).remote()
    thread = FitThread(_trainer(run, directory, exchange, cpus, gpus), exchange)
    thread.start()
    waiting: int | None = None  # the step at which the group wants to know whether to go on
    try:
        while (values := ray.get(exchange.next_report.remote())) is not None:
            report = report_from_dict(dict(values))
            waiting = report.progress.step if report.epoch_ended else None
            yield report
            if waiting is not None:
                exchange.answer.remote(waiting, True)
    except GeneratorExit:
        if waiting is not None:
            exchange.answer.remote(waiting, False)
            thread.join()
        raise
    finally:
        ray.kill(exchange)
    (directory / ".workers").unlink(missing_ok=True)
    shutil.rmtree(directory / "ray", ignore_errors=True)
    if thread.failure is not None:
        raise thread.failure
    if (status := Record.open(directory).status)["state"] == "failed":
        raise Diverged(status["message"])


def free(directory: Path) -> None:
    """Ends the workers of a run whose driver was killed. They would hold their share of the machines for ever: Ray
    frees it with the help of its dashboard, which may not be installed.
    """
    note = directory / ".workers"
    if note.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(note.read_text())))
        note.unlink()


class Exchange:
    """What the first worker and the driver say to each other; an actor of its own, so that either may be killed."""

    def __init__(self):
        self.reports: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.answers: dict[int, asyncio.Future[bool]] = defaultdict(asyncio.get_running_loop().create_future)

    async def send(self, report: dict[str, Any] | None) -> None:
        """A report, or None at the end."""
        await self.reports.put(report)

    async def next_report(self) -> dict[str, Any] | None:
        """The next report; waits for it."""
        return await self.reports.get()

    async def may_go_on(self, step: int) -> bool:
        """Waits for the driver's answer; a group that was started again gets the one of before."""
        return await asyncio.shield(self.answers[step])

    async def answer(self, step: int, go_on: bool) -> None:
        """Whether to go on after that step."""
        if not self.answers[step].done():
            self.answers[step].set_result(go_on)


class FitThread(threading.Thread):
    """`fit` waits for the end of the training, so it does that in a thread."""

    def __init__(self, trainer: TorchTrainer, exchange: Any):
        super().__init__(daemon=True)
        self.trainer, self.exchange = trainer, exchange
        self.failure: Exception | None = None

    def run(self) -> None:
        """Fits, and says when it is over."""
        try:
            self.trainer.fit()
        except Exception as error:  # raised again where the reports are read
            self.failure = error
        self.exchange.send.remote(None)


def work(config: dict[str, Any]) -> None:
    """What each worker does: the loop. The first one also writes the record, and tells the driver."""
    torch.set_num_threads(config["threads"])
    run, directory, exchange = read_run(config["run"]), Path(config["directory"]), config["exchange"]
    reports, is_first = train(run, directory, device=get_device()), distributed.rank() == 0
    if is_first:
        pg = get_current_placement_group()
        assert pg is not None
        (directory / ".workers").write_text(pg.id.hex())
        reports = recorded(reports, Record.open(directory))
    try:
        for report in reports:
            if is_first:
                ray.get(exchange.send.remote(report_to_dict(report)))
            if report.epoch_ended and not report.done:
                go_on = torch.tensor(1.0, device=get_device())
                if is_first:
                    go_on.fill_(ray.get(exchange.may_go_on.remote(report.progress.step)))
                if not distributed.broadcast(go_on):
                    return
    except Diverged:
        return  # all workers see the same loss, and starting again would not change it; the record says so


def report_to_dict(report: Report) -> dict[str, Any]:
    """A report as plain values, to cross processes."""
    return {**asdict(report), "checkpoint": str(report.checkpoint) if report.checkpoint else None}


def report_from_dict(values: dict[str, Any]) -> Report:
    """Return the report that `report_to_dict` made these values of."""
    place = Path(values["checkpoint"]) if values["checkpoint"] else None
    return Report(**{**values, "progress": Progress(**values["progress"]), "checkpoint": place})


def _trainer(run: Run, directory: Path, exchange: Any, cpus: float, gpus: float) -> TorchTrainer:
    shutil.rmtree(directory / "ray", ignore_errors=True)  # Ray's own notes; the checkpoints are the loop's
    return TorchTrainer(
        work,
        train_loop_config={
            "run": run.file(),
            "directory": str(directory),
            "threads": run.threads or max(1, int(cpus)),
            "exchange": exchange,
        },
        scaling_config=ScalingConfig(
            num_workers=run.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name="ray", storage_path=str(directory), failure_config=FailureConfig(max_failures=RESTARTS)
        ),
    )


def _share(run: Run, local: bool) -> tuple[float, float]:
    """CPUs and GPUs of each worker."""
    there = ray.cluster_resources()
    gpus = there.get("GPU", 0)
    if run.device == "cpu" or (run.device == "auto" and not gpus):
        # With fewer cores than workers on the only machine, they share them.
        return (min(1.0, there["CPU"] / run.workers) if local else 1.0), 0.0
    if local and gpus < run.workers:
        raise ConfigError(
            f"workers={run.workers} need a GPU each, and there is {gpus:g}; "
            f"set workers={max(1, int(gpus))} or device=cpu"
        )
    return 1.0, 1.0

"""The loop on several workers: one process each, gathered negatives, restarts from the newest checkpoint."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from eagleray import distributed
from eagleray.build import build_method, fitted
from eagleray.config import Run, validated
from eagleray.data import load_data
from eagleray.errors import Refusal
from eagleray.evaluate.judge import collapsed
from eagleray.method import Progress
from eagleray.ray_session import connected
from eagleray.record import Record
from eagleray.recording import recorded
from eagleray.train import Diverged, Report, train

RESTARTS = 3  # times that a group of workers which lost one is started again


def train_on_workers(run: Run, directory: Path, *, address: str | None = None) -> Iterator[Report]:
    """Trains with `run.workers` processes; yields what the first of them says, as the loop itself would.

    The first worker writes the record, which must be in `directory` already (`Record.create`). A killed worker
    ends the group, and the group goes on from the newest checkpoint; so does a run that is started again here.

    Args:
        run: everything that defines the run.
        directory: of the run; on a cluster, one that all machines share.
        address: of a Ray cluster; None: this machine.

    Raises:
        Refusal: the run does not fit the data, or the machines; nothing was started.
        Diverged: the loss became NaN or infinite.
    """
    data = load_data(run.data.name, run.data.config, run.data.settings, run.seed)  # fills the workers' cache
    build_method(run, fitted(run, data.info))
    with connected(address):
        cpus, gpus = _share(run, local=address is None)
        said = Queue(actor_options={"num_cpus": 0})
        trainer = torch_trainer(run, directory, cpus=cpus, gpus=gpus, said=said)
        yield from _while_running(trainer, said)
    if (status := Record.open(directory).status)["state"] == "failed":
        raise Diverged(status["message"])


def torch_trainer(
    run: Run,
    directory: Path,
    *,
    cpus: float,
    gpus: float,
    stop_collapsed: bool = False,
    said: Queue | None = None,
    callbacks: list[UserCallback] | None = None,
) -> TorchTrainer:
    """A trainer of the loop; `cpus` and `gpus` are each worker's. A trainer made again goes on where one stopped."""
    shutil.rmtree(directory / "ray", ignore_errors=True)  # Ray's own notes; the checkpoints are the loop's
    return TorchTrainer(
        work,
        train_loop_config={
            "run": run.file(),
            "directory": str(directory.absolute()),
            "stop_collapsed": stop_collapsed,
            "threads": run.threads or max(1, int(cpus)),
            "said": said,
        },
        scaling_config=ScalingConfig(
            num_workers=run.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name="ray",
            storage_path=str(directory.absolute()),
            failure_config=FailureConfig(max_failures=RESTARTS),
            callbacks=callbacks,
        ),
    )


def work(config: dict[str, Any]) -> None:
    """What each worker does: the loop, its epochs reported to Ray, and by the first worker recorded and told."""
    torch.set_num_threads(config["threads"])
    run, directory = validated(Run, config["run"]), Path(config["directory"])
    reports = train(run, directory, device=get_device())
    record = Record.open(directory) if distributed.rank() == 0 else None
    try:
        for report in recorded(reports, record) if record else reports:
            if record and config["said"] is not None:  # an empty queue is false
                config["said"].put(plain(report))
            if report.epoch_ended:
                ray.train.report({"metrics": report.metrics, "epoch": report.progress.epoch})
                if config["stop_collapsed"] and not report.done and _agreed(collapsed(report.metrics)):
                    if record:
                        record.finish("collapsed", summary=report.metrics)
                    return
    except Diverged:
        return  # every worker sees the same loss, and starting again would not change it; the record says so


def plain(report: Report) -> dict[str, Any]:
    """A report as plain values, to cross processes."""
    return {**asdict(report), "checkpoint": str(report.checkpoint) if report.checkpoint else None}


def from_plain(values: dict[str, Any]) -> Report:
    """The inverse of `plain`."""
    place = values["checkpoint"]
    return Report(
        **{**values, "progress": Progress(**values["progress"]), "checkpoint": Path(place) if place else None}
    )


def _agreed(mine: bool) -> bool:
    """What the first worker thinks: each measures its own share of the last batch, and all must do the same."""
    return bool(distributed.broadcast(torch.tensor(float(mine), device=get_device())))


def _share(run: Run, local: bool) -> tuple[float, float]:
    """CPUs and GPUs of each worker."""
    there = ray.cluster_resources()
    gpus = there.get("GPU", 0)
    if run.device == "cpu" or (run.device == "auto" and not gpus):
        # With fewer cores than workers on the only machine, they share them.
        return (min(1.0, there["CPU"] / run.workers) if local else 1.0), 0.0
    if local and gpus < run.workers:
        raise Refusal(
            f"workers={run.workers} need a GPU each, and there is {gpus:g}; "
            f"set workers={max(1, int(gpus))} or device=cpu"
        )
    return 1.0, 1.0


def _while_running(trainer: TorchTrainer, said: Queue) -> Iterator[Report]:
    """The reports that come while the trainer runs; its failure is raised here."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # raised below, in the thread that waits
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() or not said.empty():
        try:
            yield from_plain(said.get(timeout=0.2))
        except Empty:
            continue
    if failure:
        raise failure[0]

"""The loop: a run in, a stream of reports out. It knows no Ray and no MLflow; they are its consumers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from eagleray.blocks import distributed
from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.config import Run
from eagleray.contracts.batch import Progress, StepResult
from eagleray.contracts.report import Diverged, Report
from eagleray.contracts.seeds import seed_all
from eagleray.data.images import Data, load_data
from eagleray.data.loader import BatchLoader
from eagleray.runs.allocator import keep_freed_memory
from eagleray.runs.assemble import blueprint, build_method, fitted, pick_device, precision
from eagleray.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from eagleray.runs.evaluation import Evaluation, batch_health

CHECK_EVERY = 16  # steps between looks at the loss: each look waits for the device


@dataclass
class State:
    """What a checkpoint holds beside weights and optimizer."""

    step: int = 0
    count: int = 0  # steps summed up in `sums`
    sums: dict[str, float] = field(default_factory=dict)  # of the current epoch
    metrics: dict[str, float] = field(default_factory=dict)  # of the last complete epoch

    def means(self) -> dict[str, float]:
        """Mean of every number over the steps of the current epoch."""
        return {name: total / self.count for name, total in self.sums.items()}

    def add(self, pending: list[dict[str, Tensor]], saved: Path | None) -> None:
        """Sums up some steps' numbers, averaged over the workers.

        Raises:
            Diverged: a loss among them is NaN or infinite.
        """
        table = torch.stack([torch.stack([v.float() for v in numbers.values()]) for numbers in pending])
        for back, row in enumerate(distributed.all_reduce_mean(table).tolist()):
            numbers = dict(zip(pending[back], row, strict=True))
            if not abs(numbers["loss"]) < float("inf"):
                step = self.step - len(pending) + back + 1
                kept = f"the last good checkpoint is {saved}" if saved else "no checkpoint had been saved yet"
                raise Diverged(f"the loss is {numbers['loss']} at step {step}; {kept}. A lower optimizer.lr may help.")
            self.count += 1
            for name, value in numbers.items():
                self.sums[name] = self.sums.get(name, 0.0) + value


def train(
    run: Run,
    directory: Path,
    *,
    data: Data | None = None,
    device: torch.device | None = None,
    resume_from: Path | None = None,
) -> Iterator[Report]:
    """Trains, evaluates and saves; goes on from the newest checkpoint in `directory`, if there is one.

    Args:
        run: everything that defines the run.
        directory: where `checkpoints/` lies; only the first worker writes.
        data: the images, if they are loaded already.
        device: where to train; by default what `run.device` says.
        resume_from: a checkpoint to start from in place of the newest (population based training).

    Raises:
        ConfigError: the run does not fit the data; before anything is trained.
        Diverged: the loss became NaN or infinite.
    """
    device = device or pick_device(run.device)
    if device.type == "cpu":
        keep_freed_memory()
    data = data or load_data(run.data.name, run.data.config, run.data.settings, run.seed)
    info = fitted(run, data.info)
    method = build_method(run, info).to(device)
    if distributed.world_size() > 1:
        distributed.synchronise_batch_norm(method)
    feed = BatchLoader(run, data, info, method, device)
    method.to(memory_format=feed.layout)
    optimizer = make_optimizer(method, run.optimizer)
    judge = Evaluation(run, data, feed)
    autocast = precision(run, device)
    steps_per_epoch, folder = feed.steps_per_epoch, directory / "checkpoints"
    state, saved = State(), resume_from or next(reversed(checkpoints(folder)), None)
    if saved is not None:
        held = load_checkpoint(saved, device)
        method.load_state_dict(held["method"])
        # Its state is the checkpoint's, its settings are the run's: a population changes them in flight.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": held["optimizer"]["state"], "param_groups": groups})
        state = State(**held["state"])
    stepper = distributed.data_parallel(method)

    def progress() -> Progress:
        return Progress(state.step, steps_per_epoch * run.epochs, state.step // steps_per_epoch, run.epochs)

    def save() -> Path:
        if distributed.rank() == 0:
            parts = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}
            facts = {"step": state.step, "state": vars(state), "run": run.file(), "blueprint": blueprint(run, method)}
            save_checkpoint(folder, {**facts, **parts}, run.checkpoints.keep)
        distributed.barrier()
        return checkpoints(folder)[-1]

    if state.metrics and not state.sums and resume_from is None:
        # Saved at the end of an epoch, and perhaps killed before anyone had heard of it: that report once more.
        yield Report(progress(), state.metrics, 0.0, epoch_ended=True, checkpoint=saved)
    method.train()
    watch, told = Stopwatch(run.batch_size), time.monotonic()
    while progress().step < progress().steps:
        epoch, start = divmod(state.step, steps_per_epoch)
        if start == 0:
            seed_all(run.seed, epoch)
            method.before_epoch(lambda: judge.embed(method, autocast), progress())
        pending: list[dict[str, Tensor]] = []
        embeddings: list[Tensor] = []
        for batch in feed.epoch(epoch, start):
            seed_all(run.seed, state.step, distributed.rank())
            set_rates(optimizer, run.optimizer, run.batch_size, progress())
            with autocast:
                result: StepResult = stepper(batch, progress())
            optimizer.zero_grad(set_to_none=True)
            result.loss.backward()
            if run.optimizer.clip is not None:
                nn.utils.clip_grad_norm_(method.parameters(), run.optimizer.clip)
            method.before_step(progress())
            optimizer.step()
            method.after_step(progress())

            state.step += 1
            watch.steps += 1
            embeddings = result.embeddings
            numbers = {"loss": result.loss, **result.metrics}
            pending.append({name: torch.as_tensor(v, device=device).detach() for name, v in numbers.items()})
            ended = state.step % steps_per_epoch == 0
            due = run.checkpoints.every_steps is not None and state.step % run.checkpoints.every_steps == 0
            if ended or due or len(pending) == CHECK_EVERY:
                state.add(pending, saved)
                pending = []
            if due and not ended:
                saved = save()
                yield Report(progress(), state.means(), watch.rate(), checkpoint=saved)
            elif time.monotonic() - told > 1 and state.count and not ended:
                told = time.monotonic()
                yield Report(progress(), state.means(), watch.rate())

        done = progress().step == progress().steps
        state.metrics = {**state.means(), **batch_health(embeddings)}
        with watch.paused():
            if done or progress().epoch % run.evaluate.every == 0:
                state.metrics |= judge(method, autocast, final=done)
            state.sums, state.count = {}, 0
            if done or progress().epoch % run.checkpoints.every_epochs == 0:
                saved = save()
        yield Report(progress(), state.metrics, watch.rate(), epoch_ended=True, checkpoint=saved)


class Stopwatch:
    """Images a second of training proper: evaluation and saving stop the watch."""

    def __init__(self, batch_size: int):
        self.batch_size, self.steps, self.began = batch_size, 0, time.perf_counter()

    def rate(self) -> float:
        return self.steps * self.batch_size / (time.perf_counter() - self.began)

    @contextmanager
    def paused(self) -> Iterator[None]:
        stopped = time.perf_counter()
        yield
        self.began += time.perf_counter() - stopped

"""The training loop: a run in, reports out.

It knows no Ray and no MLflow; they consume its reports.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.config import Run
from eagleray.contracts.batch import EpochView, StepResult
from eagleray.contracts.report import Report
from eagleray.contracts.seeds import seed_all
from eagleray.data.images import Data
from eagleray.runs.allocator import keep_freed_memory
from eagleray.runs.assemble import Assembly, assemble
from eagleray.runs.checkpoint import newest_checkpoint
from eagleray.runs.notice import Notice
from eagleray.runs.state import Stopwatch, TrainingState


def train(
    run: Run,
    directory: Path,
    *,
    data: Data | None = None,
    device: torch.device | None = None,
    resume_from: Path | None = None,
    notice: Notice | None = None,
    build: Callable[..., Assembly] = assemble,
) -> Iterator[Report]:
    """Train, evaluate and save a run.

    It starts from the newest checkpoint in its directory, if there is one.

    Args:
        run: everything that defines the run.
        directory: of the run; only the first worker writes.
        data: the images, if they are loaded already.
        device: by default the one that `run.device` names.
        resume_from: a checkpoint to start from in place of the newest (population based training).
        notice: ends it after the step that is under way, with a checkpoint.
        build: makes what the run names (`runs.profile` measures it).

    Raises:
        ConfigError: the run does not fit the data; raised before anything is trained.
        Diverged: the loss became NaN or infinite.
    """
    built = build(run, data=data, device=device)
    if built.device.type == "cpu":
        keep_freed_memory()
    method, loader = built.method, built.loader
    optimizer = make_optimizer(method, run.optimizer)
    notice = notice or Notice()
    state = TrainingState(run, directory, method, optimizer, loader, notice)
    if saved := resume_from or newest_checkpoint(directory):
        state.restore(saved, built.device)
        if resume_from is None and state.is_at_report:  # that report may have been lost: repeat it
            yield Report(state.progress, state.counters.metrics, 0.0, epoch_ended=True, checkpoint=saved)
    method.train()
    watch = Stopwatch(run.batch_size)
    while not state.is_done:
        epoch, start, stop = state.place
        if start == 0:
            seed_all(run.seed, epoch)
            embed = partial(built.evaluation.embed, method, built.autocast)
            with state.interruptible():
                images = built.evaluation.training_images
                method.before_epoch(EpochView(embed, loader.labelled_set, state.progress, images))
        for batch in loader.epoch(epoch, start, stop):
            seed_all(run.seed, state.counters.step)
            set_rates(optimizer, run.optimizer, run.batch_size, state.progress)
            with built.autocast:
                result: StepResult = built.forward(batch, state.progress)
            optimizer.zero_grad(set_to_none=True)
            result.loss.backward()
            if run.optimizer.clip is not None:
                nn.utils.clip_grad_norm_(method.parameters(), run.optimizer.clip)
            method.before_step(state.progress)
            optimizer.step()
            method.after_step(state.progress)
            state.add(result)
            watch.steps += 1
            if state.is_ending or state.checkpoint_is_due:
                state.save()
                yield Report(state.progress, state.counters.means(), watch.rate(), checkpoint=state.saved)
                if state.is_ending:
                    raise notice.error
            elif state.counters.count and not state.is_between_epochs and watch.report_is_due():
                yield Report(state.progress, state.counters.means(), watch.rate())

        progress = state.progress
        with watch.paused():
            metrics = state.trained()
            if progress.done or progress.epoch % run.evaluate.every == 0:
                with state.evaluating():
                    measured = built.evaluation(method, built.autocast, final=progress.done)
                metrics |= measured
                if progress.done:
                    state.keep(measured)
            state.end_epoch(metrics)
            if progress.done or progress.epoch % run.checkpoints.every_epochs == 0:
                state.save()
        yield Report(progress, metrics, watch.rate(), epoch_ended=True, checkpoint=state.saved)

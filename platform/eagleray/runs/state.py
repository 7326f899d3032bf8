"""The state of a run in training.

Counters and means over the workers are saved to checkpoints and restored.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eagleray.blocks import distributed
from eagleray.config import Run
from eagleray.contracts.batch import Progress, StepResult
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import make_folder
from eagleray.contracts.method import Method
from eagleray.contracts.report import Diverged
from eagleray.data.loader import BatchLoader
from eagleray.runs.assemble import blueprint
from eagleray.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from eagleray.runs.evaluation import batch_health
from eagleray.runs.measured import Measured
from eagleray.runs.notice import Notice

CHECK_EVERY = 16  # steps between checks of the loss, at most: each check waits for the device
AGREE_WITHIN = 1.0  # seconds in which workers agree to end, if a step is shorter; an exchange takes a thousandth
LONG = 10.0  # seconds: before an evaluation that takes longer, workers save the steps of the epoch
NAMED = 8  # images of a batch that a sentence names; a log names all


@dataclass
class Counters:
    """What a checkpoint holds besides weights and optimizer."""

    step: int = 0
    count: int = 0  # steps in `sums`
    sums: dict[str, float] = field(default_factory=dict)  # of the current epoch
    metrics: dict[str, float] = field(default_factory=dict)  # of the last epoch whose steps are done

    def means(self) -> dict[str, float]:
        """Return the means over the current epoch's steps."""
        return {name: total / self.count for name, total in self.sums.items()}


class TrainingState:
    """The progress of a run, its method and optimizer.

    Args:
        run: the run in training.
        directory: of the run, created if missing; only the first worker writes to it.
        method: with its weights.
        optimizer: with its moments.
        loader: knows which images a step has.
        notice: whether this process was told to end.
    """

    def __init__(
        self, run: Run, directory: Path, method: Method, optimizer: Optimizer, loader: BatchLoader, notice: Notice
    ):
        make_folder(directory)
        self.run, self.directory, self.method, self.optimizer = run, directory, method, optimizer
        self.notice, self.is_alone = notice, distributed.world_size() == 1
        self.loader, self.steps_per_epoch = loader, loader.steps_per_epoch
        self.counters = Counters()
        self.saved: Path | None = None  # the newest checkpoint
        self.embeddings: list[Tensor] = []  # of the last step
        self._pending: list[dict[str, Tensor]] = []  # numbers of the steps since the last check
        self._check_every = CHECK_EVERY if self.is_alone else 1  # steps
        self._checked, self._evaluated_in = time.monotonic(), float("inf")  # when; seconds of the last evaluation
        self._is_agreed = self._is_long = False  # that all workers end; that the evaluation takes long

    @property
    def progress(self) -> Progress:
        """Steps and epochs, done and in total."""
        step, each = self.counters.step, self.steps_per_epoch
        steps = self.run.steps or each * (self.run.epochs or 0)
        epochs = -(-steps // each)
        return Progress(step, steps, epochs if step >= steps else step // each, epochs, each)

    @property
    def place(self) -> tuple[int, int, int]:
        """The epoch that is under way, its steps that are done, and all its steps.

        If it is to be evaluated, all are done.
        """
        progress = self.progress
        epoch = progress.epoch - self.is_to_be_evaluated
        first = epoch * self.steps_per_epoch
        return epoch, progress.step - first, min(self.steps_per_epoch, progress.steps - first)

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, and evaluated."""
        return self.progress.done and not self.is_to_be_evaluated

    @property
    def is_between_epochs(self) -> bool:
        """Whether the last step ended an epoch."""
        return self.counters.step % self.steps_per_epoch == 0 or self.progress.done

    @property
    def is_at_report(self) -> bool:
        """Whether the report of an epoch was the last thing."""
        return self.is_between_epochs and not self.is_to_be_evaluated

    @property
    def is_to_be_evaluated(self) -> bool:
        """Whether the last step ended an epoch, of which the evaluation is left."""
        return self.is_between_epochs and self.counters.count > 0

    @property
    def is_ending(self) -> bool:
        """Whether training ends here: this process was told to, or one of several that have agreed."""
        return self.notice.came if self.is_alone else self._is_agreed

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether `checkpoints.every_steps` asks for a checkpoint after the last step, within an epoch."""
        every = self.run.checkpoints.every_steps
        return every is not None and self.counters.step % every == 0 and not self.is_between_epochs

    def add(self, result: StepResult) -> None:
        """Count one training step.

        Raises:
            Diverged: the loss of one of the last steps is NaN or infinite.
        """
        self.counters.step += 1
        self.embeddings = result.embeddings
        numbers = {"loss": result.loss, **result.metrics}
        self._pending.append({k: torch.as_tensor(v, device=result.loss.device).detach() for k, v in numbers.items()})
        if len(self._pending) >= self._check_every or self.is_between_epochs:
            self._sum_up()

    def trained(self) -> dict[str, float]:
        """Return the numbers of an epoch whose steps are done."""
        if self.embeddings:
            self.counters.metrics = {**self.counters.means(), **batch_health(self.embeddings)}
            self.embeddings = []
        return dict(self.counters.metrics)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Lose no step of an epoch whose evaluation, the block, takes longer than the notice."""
        if self._is_long and not self.is_alone:
            self.save()
        began = time.monotonic()
        with self.interruptible():
            yield
        self._checked = time.monotonic()
        self._evaluated_in = self._checked - began

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Save and end at once if notice comes inside the block, which changes nothing that is saved.

        Several workers end together, after a step.
        """
        try:
            with self.notice.interrupting() if self.is_alone else nullcontext():
                yield
        except type(self.notice.error):
            self.save()
            raise

    def end_epoch(self, metrics: Mapping[str, float]) -> None:
        """Keep a complete epoch's metrics and start the next."""
        self.counters = Counters(self.counters.step, metrics=dict(metrics))

    def keep(self, measured: Measured) -> None:
        """Keep what the last evaluation found, for people."""
        if distributed.rank() == 0:
            measured.keep(self.directory / "artifacts")

    def save(self) -> None:
        """Write a checkpoint; all workers wait for it."""
        self._sum_up()
        if self.is_to_be_evaluated:
            self.trained()
        if distributed.rank() == 0:
            parts = {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict()}
            facts = {"step": self.counters.step, "counters": asdict(self.counters), "run": self.run.file()}
            built = {"blueprint": blueprint(self.run, self.method)}
            self.saved = save_checkpoint(self.directory, {**facts, **built, **parts}, self.run.checkpoints.keep)
        distributed.barrier()
        if distributed.rank() != 0:
            self.saved = next(reversed(checkpoints(self.directory)), None)  # on another machine there may be none

    def restore(self, path: Path, device: torch.device) -> None:
        """Read everything from a checkpoint.

        Raises:
            ConfigError: it has the weights alone (`keep_weights`).
        """
        state: dict[str, Any] = load_checkpoint(path, device)
        if "optimizer" not in state:
            raise ConfigError(
                f"{path} has the weights alone, so its training cannot go on: start a run from them "
                "(encoder=pretrained encoder.run=DIRECTORY), or the sweep with keep=all"
            )
        self.method.load_state_dict(state["method"])
        # Moments come from the checkpoint, settings from the run: a population changes them during training.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.counters, self.saved = Counters(**state["counters"]), path

    def _sum_up(self) -> None:
        """Check the losses since the last time, and add their means over the workers."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        table = torch.stack([torch.stack([v.float() for v in numbers.values()]) for numbers in pending])
        for back, row in enumerate(self._agreed(table)):
            numbers = dict(zip(pending[back], row, strict=True))
            if not abs(numbers["loss"]) < float("inf"):
                raise self._diverged(numbers["loss"], self.counters.step - len(pending) + back + 1)
            self.counters.count += 1
            for name, value in numbers.items():
                self.counters.sums[name] = self.counters.sums.get(name, 0.0) + value

    def _agreed(self, table: Tensor) -> list[list[float]]:
        """Return the means over the workers of a table, which tell each other more in the same exchange.

        These are whether one was told to end, and how long a step and an evaluation take: so all come to the same
        answers.
        """
        if self.is_alone:
            return table.tolist()
        now = time.monotonic()
        step = (now - self._checked) / len(table)
        own = table.new_tensor([float(self.notice.came), step, self._evaluated_in])
        *numbers, noticed, step, evaluated_in = distributed.all_reduce_mean(torch.cat([table.flatten(), own])).tolist()
        self._checked, self._is_agreed, self._is_long = now, noticed > 0, evaluated_in > LONG
        self._check_every = min(CHECK_EVERY, max(1, int(AGREE_WITHIN / max(step, 1e-6))))
        return [numbers[start : start + table.shape[1]] for start in range(0, len(numbers), table.shape[1])]

    def _diverged(self, loss: float, step: int) -> Diverged:
        saved = f"the last good checkpoint is {self.saved}" if self.saved else "no checkpoint was saved before"
        images = self.loader.order(step - 1, labelled=not self.loader.views).tolist()
        shown = f"{', '.join(map(str, images[:NAMED]))}{', …' if len(images) > NAMED else ''}"
        error = Diverged(
            f"the loss is {loss} at step {step}; {saved}. A lower optimizer.lr may help. The step's images are {shown} "
            "of the training set."
        )
        error.add_note(f"The images of step {step}, by their places in the training set: {images}")
        return error


class Stopwatch:
    """Measures images per second of training.

    Evaluation and saving are not counted.

    Args:
        batch_size: images in a step, over all workers together.
    """

    def __init__(self, batch_size: int):
        self.batch_size, self.steps, self.began = batch_size, 0, time.perf_counter()
        self.reported = time.monotonic()

    def rate(self) -> float:
        """Return the images per second so far."""
        return self.steps * self.batch_size / (time.perf_counter() - self.began)

    def report_is_due(self) -> bool:
        """Return whether a report is due.

        It is due a second after this was last true.
        """
        if time.monotonic() - self.reported <= 1:
            return False
        self.reported = time.monotonic()
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the watch for the block."""
        stopped = time.perf_counter()
        yield
        self.began += time.perf_counter() - stopped

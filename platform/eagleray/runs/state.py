"""The state of a run in training.

Counters and means over the workers are saved to checkpoints and restored.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

CHECK_EVERY = 16  # steps between checks of the loss: each check waits for the device
NAMED = 8  # images of a batch that a sentence names; a log names all


@dataclass
class Counters:
    """What a checkpoint holds besides weights and optimizer."""

    step: int = 0
    count: int = 0  # steps in `sums`
    sums: dict[str, float] = field(default_factory=dict)  # of the current epoch
    metrics: dict[str, float] = field(default_factory=dict)  # of the last complete epoch

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
    """

    def __init__(self, run: Run, directory: Path, method: Method, optimizer: Optimizer, loader: BatchLoader):
        make_folder(directory)
        self.run, self.directory, self.method, self.optimizer = run, directory, method, optimizer
        self.loader, self.steps_per_epoch = loader, loader.steps_per_epoch
        self.counters = Counters()
        self.saved: Path | None = None  # the newest checkpoint
        self.embeddings: list[Tensor] = []  # of the last step
        self._pending: list[dict[str, Tensor]] = []  # numbers of the steps since the last check

    @property
    def progress(self) -> Progress:
        """Steps and epochs, done and in total."""
        step, epochs = self.counters.step, self.run.epochs
        return Progress(step, self.steps_per_epoch * epochs, step // self.steps_per_epoch, epochs)

    @property
    def is_between_epochs(self) -> bool:
        """Whether the last step ended an epoch."""
        return self.counters.step % self.steps_per_epoch == 0

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether `checkpoints.every_steps` asks for a checkpoint after the last step."""
        every = self.run.checkpoints.every_steps
        return every is not None and self.counters.step % every == 0

    def add(self, result: StepResult) -> None:
        """Count one training step.

        Raises:
            Diverged: the loss of one of the last steps is NaN or infinite.
        """
        self.counters.step += 1
        self.embeddings = result.embeddings
        numbers = {"loss": result.loss, **result.metrics}
        self._pending.append({k: torch.as_tensor(v, device=result.loss.device).detach() for k, v in numbers.items()})
        if len(self._pending) == CHECK_EVERY or self.is_between_epochs or self.checkpoint_is_due:
            self._sum_up()

    def end_epoch(self, metrics: Mapping[str, float]) -> None:
        """Keep a complete epoch's metrics and start the next."""
        self.counters = Counters(self.counters.step, metrics=dict(metrics))

    def save(self) -> None:
        """Write a checkpoint; all workers wait for it."""
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
        pending, self._pending = self._pending, []
        table = torch.stack([torch.stack([v.float() for v in numbers.values()]) for numbers in pending])
        for back, row in enumerate(distributed.all_reduce_mean(table).tolist()):
            numbers = dict(zip(pending[back], row, strict=True))
            if not abs(numbers["loss"]) < float("inf"):
                raise self._diverged(numbers["loss"], self.counters.step - len(pending) + back + 1)
            self.counters.count += 1
            for name, value in numbers.items():
                self.counters.sums[name] = self.counters.sums.get(name, 0.0) + value

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

"""A run's weights once more, from its last checkpoint: to measure what was left for the end."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from eagleray.config import Run
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.data.images import load_data
from eagleray.data.loader import BatchLoader
from eagleray.runs.assemble import build_method, fitted, pick_device, precision
from eagleray.runs.checkpoint import checkpoints, load_checkpoint
from eagleray.runs.evaluation import Evaluation


@dataclass(frozen=True)
class Judged:
    """A method and all that measures it."""

    method: Method
    judge: Evaluation
    autocast: AbstractContextManager


def untrained(run: Run) -> Judged:
    """The method of a run as its seed initialises it."""
    device = pick_device(run.device)
    data = load_data(run.data.name, run.data.config, run.data.settings, run.seed)
    info = fitted(run, data.info)
    method = build_method(run, info).to(device)
    feed = BatchLoader(run, data, info, method, device)
    method.to(memory_format=feed.layout)
    return Judged(method, Evaluation(run, data, feed), precision(run, device))


def reloaded(run: Run, directory: Path) -> Judged:
    """The method of a run with the weights of its newest checkpoint.

    Raises:
        ConfigError: there is none.
    """
    saved = checkpoints(directory / "checkpoints")
    if not saved:
        raise ConfigError(f"{directory} holds no checkpoint, so there are no weights to measure; train it first")
    judged = untrained(run)
    device = next(judged.method.parameters()).device
    judged.method.load_state_dict(load_checkpoint(saved[-1], device)["method"])
    return judged


def measured(run: Run, directory: Path) -> dict[str, float]:
    """All metrics of a trained run, those of the test part too (`test_…`)."""
    whole = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"test": True})})
    judged = reloaded(whole, directory)
    return judged.judge(judged.method, judged.autocast, final=True)


def on_test(run: Run, directory: Path) -> dict[str, float]:
    """What a trained run is worth on the test part: `test_knn`, `test_linear`, …"""
    return {name: value for name, value in measured(run, directory).items() if name.startswith("test_")}

"""Runs that have been trained, with their weights: to be evaluated, exported, or built into other runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eagleray.config import Run, read_run
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.runs.assemble import Assembly, assemble, from_blueprint
from eagleray.runs.checkpoint import last_state
from eagleray.runs.record import Record


def recorded_run(record: Record) -> Run:
    """Return the run that a record keeps."""
    return read_run(record.file())


def restored(run: Run, directory: Path) -> Assembly:
    """Assemble a run with the weights of its newest checkpoint.

    Raises:
        ConfigError: there is none, or it does not fit.
    """
    held = last_state(directory)
    built = assemble(run)
    _load(built.method, held, directory)
    return built


def evaluated(run: Run, directory: Path) -> dict[str, float]:
    """Measure all metrics of a trained run, those of the test part (`test_...`) too."""
    whole = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"test": True})})
    built = restored(whole, directory)
    return built.evaluation(built.method, built.autocast, final=True)


def evaluated_on_test(run: Run, directory: Path) -> dict[str, float]:
    """Measure what a trained run is worth on the test part: `test_knn`, `test_linear`, ..."""
    return {name: value for name, value in evaluated(run, directory).items() if name.startswith("test_")}


def trained(source: Path | Mapping[str, Any]) -> tuple[Method, Mapping[str, Any]]:
    """Build the method of a finished run with the weights of its newest checkpoint.

    Args:
        source: the directory of a run; or a blueprint that this function returned before, for the same method with
            weights that are still to be loaded.

    Returns:
        The method in eval mode on the CPU, and its blueprint; torch's generator is left as it was.

    Raises:
        ConfigError: there is no such run, it has not finished, or its weights do not fit.
    """
    held = {"blueprint": source} if isinstance(source, Mapping) else _finished(source)
    with torch.random.fork_rng(devices=[]):
        method = from_blueprint(held["blueprint"])
    if "method" in held:
        _load(method, held, source)
    return method.eval(), held["blueprint"]


def check_images(name: str, then: DataInfo, image_size: int, channels: int) -> None:
    """Check that images are like those that a network was trained on.

    Raises:
        ConfigError: their size or number of channels is another.
    """
    if then.image_size != image_size:
        raise ConfigError(
            f"{name} was trained on images of {then.image_size} pixels, and these have {image_size}: "
            f"set image_size={then.image_size}"
        )
    if then.channels != channels:
        raise ConfigError(
            f"{name} was trained on images of {then.channels} channels, and these have {channels}: "
            "take images of one kind for both"
        )


def _finished(directory: Path) -> dict[str, Any]:
    state = Record.open(directory).state
    if state != "finished":
        raise ConfigError(f"{directory} is no finished run, it is {state}: continue it with --resume, or name another")
    held = last_state(directory)
    if "blueprint" not in held:
        raise ConfigError(
            f"the checkpoint in {directory} is of an older version and does not say what its network is; train it again"
        )
    return held


def _load(method: Method, held: Mapping[str, Any], source: object) -> None:
    try:
        method.load_state_dict(held["method"])
    except RuntimeError as error:
        said = f"the weights in {source} do not fit its method as that is written now; train it again"
        raise ConfigError(said) from error

"""Restore trained runs with their weights.

They are then evaluated, exported or reused in other runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eagleray.config import Run, read_run
from eagleray.config.metrics import TEST
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.data.images import Data
from eagleray.runs.assemble import Assembly, assemble, from_blueprint
from eagleray.runs.checkpoint import last_state
from eagleray.runs.measured import Measured
from eagleray.runs.record import Record
from eagleray.storage.mirror import run_at_hand


def recorded_run(record: Record) -> Run:
    """Return the run that a record keeps."""
    return read_run(record.file())


def restored(run: Run, directory: Path, data: Data | None = None) -> Assembly:
    """Assemble a run with the weights of its newest checkpoint.

    `data` are its images, if they are loaded already.

    Raises:
        ConfigError: there is no checkpoint, or it does not fit.
    """
    state = last_state(directory)
    built = assemble(run, data=data)
    _load(built.method, state, directory)
    return built


def evaluated(run: Run, directory: Path, data: Data | None = None) -> Measured:
    """Measure all metrics of a trained run.

    Those on the test set (`test_...`) are included.
    """
    whole = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"test": True})})
    built = restored(whole, directory, data)
    return built.evaluation(built.method, built.autocast, final=True)


def evaluated_on_test(run: Run, directory: Path) -> Measured:
    """Measure a trained run on the test set.

    The metrics are `test_knn`, `test_linear`, ...
    """
    found = evaluated(run, directory)
    return found.only([name for name in found if name.startswith(TEST)])


def trained(source: Path | Mapping[str, Any]) -> tuple[Method, Mapping[str, Any]]:
    """Build the trained method of a finished run.

    It has the weights of the run's newest checkpoint.

    Args:
        source: the directory of a run; or a blueprint that this function returned before: the same method, with
            weights that the caller loads later.

    Returns:
        The method in eval mode on the CPU, and its blueprint. The state of torch's generator does not change.

    Raises:
        ConfigError: there is no such run, it has not finished, or its weights do not fit.
    """
    state = {"blueprint": source} if isinstance(source, Mapping) else _finished(source)
    return _built(state, source), state["blueprint"]


def newest_method(directory: Path) -> Method:
    """Build a run's method with the weights of its newest checkpoint.

    It is in eval mode on the CPU. The images of the run are not read.

    Raises:
        ConfigError: there is no checkpoint, or it does not fit.
    """
    return _built(_described(directory), directory)


def check_images(name: str, then: DataInfo, image_size: int, channels: int) -> None:
    """Check that images fit a trained network.

    They need the size and channels that it was trained on.

    Raises:
        ConfigError: the size or the number of channels differs.
    """
    if then.image_size != image_size:
        raise ConfigError(
            f"{name} was trained on images of {then.image_size} pixels, and these have {image_size}: "
            f"set image_size={then.image_size}"
        )
    if then.channels != channels:
        raise ConfigError(
            f"{name} was trained on images of {then.channels} channels, and these have {channels}: "
            "use images with the same channels for both"
        )


def _finished(directory: Path) -> dict[str, Any]:
    ending = Record.open(run_at_hand(directory)).state
    if ending != "finished":
        raise ConfigError(
            f"{directory} is not a finished run, it is {ending}: continue it with --resume, or name another"
        )
    return _described(directory)


def _described(directory: Path) -> dict[str, Any]:
    """Read a checkpoint that describes its network."""
    state = last_state(directory)
    if "blueprint" not in state:
        raise ConfigError(
            f"the checkpoint in {directory} is of an older version and does not describe its network; train it again"
        )
    return state


def _built(state: Mapping[str, Any], source: object) -> Method:
    with torch.random.fork_rng(devices=[]):
        method = from_blueprint(state["blueprint"])
    if "method" in state:
        _load(method, state, source)
    return method.eval()


def _load(method: Method, state: Mapping[str, Any], source: object) -> None:
    try:
        method.load_state_dict(state["method"])
    except RuntimeError as error:
        message = f"the weights in {source} do not fit today's version of its method; train it again"
        raise ConfigError(message) from error

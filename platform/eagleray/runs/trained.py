"""Trained runs as parts of other runs: their networks, with weights, from their directories."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eagleray.contracts.batch import DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.runs.checkpoint import checkpoints, load_checkpoint
from eagleray.runs.record import Record


def trained(source: Path | Mapping[str, Any]) -> tuple[Method, Mapping[str, Any]]:
    """The method of a finished run with the weights of its newest checkpoint, and what it was built from.

    Args:
        source: the directory of a run; or what this function said a method was built from, for the same method with
            weights that are still to be loaded.

    Returns:
        The method in eval mode on the CPU; torch's generator is left as it was.

    Raises:
        ConfigError: there is no such run, it has not finished, or its weights do not fit.
    """
    from eagleray.runs.assemble import (
        from_blueprint,  # here: it knows run files, which a method's own file must not load
    )

    held = {"blueprint": source} if isinstance(source, Mapping) else _newest(source)
    with torch.random.fork_rng(devices=[]):
        method = from_blueprint(held["blueprint"])
    if "method" in held:
        try:
            method.load_state_dict(held["method"])
        except RuntimeError as error:
            said = f"the weights in {source} do not fit its method as that is written now; train it again"
            raise ConfigError(said) from error
    return method.eval(), held["blueprint"]


def check_images(name: str, then: DataInfo, image_size: int, channels: int) -> None:
    """Whether images are like those that a network was trained on.

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


def _newest(directory: Path) -> dict[str, Any]:
    state = Record.open(directory).state
    if state != "finished":
        raise ConfigError(
            f"{directory} is no finished run, it is {state}: take it up with --resume, or name another one"
        )
    saved = checkpoints(directory / "checkpoints")
    if not saved:
        raise ConfigError(f"{directory} holds no checkpoint; name the directory of a run (a sweep's lie in its trials)")
    held = load_checkpoint(saved[-1])
    if "blueprint" not in held:
        raise ConfigError(
            f"{saved[-1]} is of an older version and does not say what its network is; train the run again"
        )
    return held

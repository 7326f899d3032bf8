"""Build what a run file names.

These are images, encoder, method, data loader and evaluation.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from eagleray.blocks import distributed
from eagleray.blocks.koleo import KoLeo
from eagleray.blocks.multitask import Multitask, Task
from eagleray.config import Run, read_run
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.seeds import seed_weights
from eagleray.data.images import Data, load_data
from eagleray.data.loader import BatchLoader
from eagleray.runs.device import autocast_for, pick_device
from eagleray.runs.evaluation import Evaluation
from eagleray.runs.preflight import check_images


@dataclass(frozen=True)
class Assembly:
    """A run's method with its data loader and evaluation."""

    run: Run
    data: Data
    method: Method
    loader: BatchLoader
    evaluation: Evaluation
    device: torch.device
    autocast: AbstractContextManager  # of the forward passes
    forward: nn.Module  # the method, with gradients averaged over workers


def assemble(run: Run, *, data: Data | None = None, device: torch.device | None = None) -> Assembly:
    """Build everything that a run names.

    Weights are drawn from the run's seed.

    Args:
        run: everything that defines the run.
        data: the images, if they are loaded already.
        device: by default the one that `run.device` names.

    Raises:
        ConfigError: the run does not fit its data or this machine.
    """
    device, data = device or pick_device(run.device), data or images_of(run)
    info = fitted(run, data.info)
    untrained = partial(_placed, run, info, device)
    method = untrained()
    _check_side(run, method, device)
    if distributed.world_size() > 1:
        distributed.synchronise_batch_norm(method)
    loader = BatchLoader(run, data, info, method, device)
    method.to(memory_format=loader.layout)
    evaluation = Evaluation(run, data, loader, untrained)
    steps = KoLeo(method, run.koleo) if run.koleo else method
    autocast, forward = autocast_for(run.precision, device), distributed.data_parallel(steps)
    return Assembly(run, data, method, loader, evaluation, device, autocast, forward)


def _check_side(run: Run, method: Method, device: torch.device) -> None:
    """Refuse a size of encoded images that the network cannot take.

    Raises:
        ConfigError: it fails for it.
    """
    info = method.data
    if info.side == info.image_size:
        return
    try:
        with torch.no_grad():
            method.eval().encode(torch.zeros(2, info.channels, info.side, info.side, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise ConfigError(
            f"evaluate.size={info.side}: encoder={run.encoder.name} was built for images of {info.image_size} pixels, "
            f"and takes no others ({why}); remove it, or choose a convolutional network"
        ) from error
    finally:
        method.train()


def _placed(run: Run, data: DataInfo, device: torch.device) -> Method:
    return build_method(run, data).to(device)


def images_of(run: Run) -> Data:
    """Load the images of a run.

    The first call for these settings fills the cache that all runs share.

    Raises:
        ConfigError: images are missing, damaged, or too few.
    """
    return load_data(run.data.name, run.data.config, run.data.settings, run.seed)


def opened_once() -> Callable[[Run], Data]:
    """Return a function like `images_of` that opens the images of several runs once.

    Opening a large folder takes a while. Runs of different seeds share the split of the first.
    """
    opened: dict[str, Data] = {}

    def images(run: Run) -> Data:
        source = json.dumps(run.file()["data"])
        if source not in opened:
            opened[source] = images_of(run)
        return opened[source]

    return images


def fitted(run: Run, data: DataInfo) -> DataInfo:
    """Return what a method may know about its data.

    These are the facts of the images, with the image size, batch size, workers and seed of the run.

    Raises:
        ConfigError: the run asks for something these images do not have.
    """
    check_images(run, samples=data.samples, channels=data.channels, has_labels=data.classes is not None)
    size = run.image_size or data.image_size
    about = {"batch_size": run.batch_size, "workers": run.workers, "seed": run.seed}
    of_encoding = {"encoded_size": run.evaluate.size, "mirrored": run.evaluate.mirror, "shift": run.evaluate.shift}
    return replace(data, image_size=size, **about, **of_encoding)


def build_method(run: Run, data: DataInfo) -> Method:
    """Build the method of a run.

    Its weights are new, drawn from the run's seed. Torch's global generator is seeded for this, and stays seeded.
    """
    seed_weights(run.seed)
    encoder_class = run.encoder.declaration.load()
    encoder = encoder_class(
        run.encoder.name,
        run.encoder.declaration.real(run.encoder.config),
        image_size=data.image_size,
        channels=data.channels,
    )
    methods: dict[str, Method] = {}
    # What changes the encoder comes first, so that others copy what it leaves.
    for one in sorted((run.method, *run.beside), key=lambda one: not _changes_encoder(one.declaration.load())):
        with torch.random.fork_rng(devices=[], enabled=one is not run.method):  # whose weights are those it has alone
            if one is not run.method:
                seed_weights(run.seed, one.title)
            methods[one.title] = one.declaration.load()(encoder, one.declaration.real(one.config), data)
        if run.beside:
            methods[one.title].change_encoder()
    main = methods[run.method.title]
    tasks = {task.title: Task(methods[task.title], task.settings.loss_weight) for task in run.beside}
    return Multitask(run.method.title, main, tasks) if tasks else main


def _changes_encoder(method: type[Method]) -> bool:
    return method.change_encoder is not Method.change_encoder


def blueprint(run: Run, method: Method) -> dict[str, Any]:
    """Return a method's blueprint, as plain values.

    It is what the method was built from, so that checkpoints need no other file.
    """
    return {
        "method": {"name": run.method.name, **method.config.model_dump(mode="json")},
        "encoder": {"name": method.encoder.name, **method.encoder.config.model_dump(mode="json")},
        "beside": run.file()["beside"],
        "data": asdict(method.data),
    }


def from_blueprint(plan: Mapping[str, Any]) -> Method:
    """Build a method from its blueprint, with new weights.

    Raises:
        ConfigError: the settings do not fit today's version of the method.
    """
    # Early blueprints tell nothing of methods beside another.
    run = read_run({section: plan[section] for section in ("method", "encoder", "beside") if section in plan})
    return build_method(run, DataInfo(**plan["data"]))

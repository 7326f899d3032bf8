"""Small methods for tests, and batches for them.

A method's own test file may add settings as `SMALL`. Settings that only fit the digits, on which whole runs are tested,
it calls `ON_DIGITS`.
"""

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from eagleray.augment.override import overridden
from eagleray.blocks import distributed
from eagleray.config import load_run
from eagleray.config.registry import declared, find
from eagleray.config.sections import Augment
from eagleray.contracts.batch import Batch, DataInfo, LabelledBatch, Progress
from eagleray.contracts.method import Method
from eagleray.runs.assemble import blueprint, build_method
from eagleray.runs.checkpoint import save_checkpoint
from eagleray.runs.record import Record

METHODS = sorted(declared("method"))
NOW = Progress(step=3, steps=10, epoch=0, epochs=1)
INFO = DataInfo(image_size=8, channels=3, samples=100, classes=3, batch_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
BATCH = INFO.batch_size


def settings(name: str) -> list[str]:
    """Return settings that make the method small.

    They also make its test sharp, and include those of its test file.
    """
    needs = find("method", name).needs
    network = ["encoder.depth=1", "encoder.dim=32"] if "tokens" in needs else ["encoder.width=8"]
    small = own(name, "SMALL")
    return [f"method={name}", *([] if "encoder=pretrained" in small else network), *small]


def own(name: str, constant: str) -> list[str]:
    """Return settings from the method's own test file."""
    file = Path(__file__).parent / "methods" / f"test_{name}.py"
    return getattr(import_module(f"methods.test_{name}"), constant, []) if file.exists() else []


def needed(name: str) -> list[str]:
    """Return values for settings without a default.

    No run could use them.
    """
    declaration = find("method", name)
    trained = ["encoder.run=somewhere"] if "trained_encoder" in declaration.needs else []
    return [*(f"method.{key}=somewhere" for key in declaration.required), *trained]


def finished_run(directory: Path, info: DataInfo, *overrides: str) -> Path:
    """Return the directory of a finished, untrained run.

    It has the initial weights.
    """
    run = load_run(None, list(overrides))
    method = build_method(run, info)
    record = Record.create(directory, name=directory.name, experiment="e", params={}, run=run.file())
    facts = {"step": 1, "blueprint": blueprint(run, method), "method": method.state_dict()}
    save_checkpoint(directory, facts, keep=1)
    record.finish("finished")
    return directory


def small(name: str, *more: str) -> Method:
    """Return a float64 method on a very small encoder."""
    return build_method(load_run(None, [*settings(name), *more]), INFO).double()


def share(x: Tensor) -> Tensor:
    """Return this worker's rows of a single process's values."""
    return x.chunk(distributed.world_size())[distributed.rank()]


def batch_of(method: Method) -> Batch:
    """Return eight images whose halves differ.

    So a worker's own half says little about the whole.
    """
    draw = torch.Generator().manual_seed(1)
    views = []
    for declared_view in overridden(method.views, Augment()):
        size = declared_view.size or INFO.image_size
        view = torch.randn(BATCH, 3, size, size, dtype=torch.float64, generator=draw)
        view[BATCH // 2 :] = view[BATCH // 2 :] * 3 + 1
        views.append(share(view))
    labelled = None
    if method.needs & {"labels", "only_labels"}:
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=draw)
        images[2:] = images[2:] * 2 - 1
        places = torch.tensor([90, 91, 95, 99])
        labelled = LabelledBatch([share(images)], share(torch.tensor([0, 1, 1, 2])), share(places))
    return Batch(views, share(torch.arange(BATCH)), labelled)

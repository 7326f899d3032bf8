"""Methods made small enough for tests, and batches for them; a method's own test file may add settings as `SMALL`."""

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from eagleray import distributed
from eagleray.augment.override import overridden
from eagleray.build import build_method
from eagleray.config import load_run
from eagleray.config.declared import declared, find
from eagleray.config.sections import Augment
from eagleray.method import Batch, DataInfo, LabelledBatch, Method, Progress

METHODS = sorted(declared("method"))
NOW = Progress(step=3, steps=10, epoch=0, epochs=1)
INFO = DataInfo(image_size=8, channels=3, samples=100, classes=3, batch_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
BATCH = INFO.batch_size


def settings(name: str) -> list[str]:
    """Settings that make the method small and its test sharp, those of its own test file among them."""
    values = find("method", name).values
    network = ["encoder.depth=1", "encoder.dim=32"] if values.get("needs_tokens") else ["encoder.width=8"]
    own = Path(__file__).parent / "per_method" / f"test_{name}.py"
    small = getattr(import_module(f"per_method.test_{name}"), "SMALL", []) if own.exists() else []
    return [f"method={name}", *network, *small]


def small(name: str, *more: str) -> Method:
    """The method, in float64, on an encoder that is as small as can be."""
    return build_method(load_run(None, [*settings(name), *more]), INFO).double()


def share(x: Tensor) -> Tensor:
    """This worker's rows of what a single process holds."""
    return x.chunk(distributed.world_size())[distributed.rank()]


def batch_of(method: Method) -> Batch:
    """Eight images, the second half unlike the first, so that a worker's own half says little of the whole."""
    draw = torch.Generator().manual_seed(1)
    views = []
    for declared_view in overridden(method.views, Augment()):
        size = declared_view.size or INFO.image_size
        view = torch.randn(BATCH, 3, size, size, dtype=torch.float64, generator=draw)
        view[BATCH // 2 :] = view[BATCH // 2 :] * 3 + 1
        views.append(share(view))
    labelled = None
    if type(method).labels == "partial":
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=draw)
        images[2:] = images[2:] * 2 - 1
        labelled = LabelledBatch([share(images)], share(torch.tensor([0, 1, 1, 2])))
    return Batch(views, share(torch.arange(BATCH)), labelled)

"""Workers that share a run compute what one process computes: from the views' pixels to the weights after training."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eagleray.blocks import distributed
from eagleray.config import Run, load_run
from eagleray.config.registry import declared, find
from eagleray.data.images import load_data
from eagleray.data.loader import BatchLoader
from eagleray.loop import train
from eagleray.runs import assemble
from eagleray.runs.assemble import build_method, fitted
from eagleray.runs.checkpoint import load_checkpoint
from eagleray.runs.processes import processes
from method_cases import METHODS, settings

pytestmark = pytest.mark.slow  # starts up to four processes

# A step has twelve images, which two, three and four workers can share; three steps are an epoch.
SHARED = ["batch_size=12", "epochs=1", "precision=fp32", "device=cpu", "evaluate.linear.when=never", "evaluate.knn.k=5"]
VIT = ["encoder=vit_tiny", "encoder.depth=1", "encoder.dim=32"]
FEW = ["labels.fraction=0.13", "labels.ratio=1", "encoder.width=8"]
RUNS = {
    "byol": ["encoder=test_efficientnet"],  # two views, a teacher, batch norms, also those of timm with an activation
    "ibot": [*VIT, "method.prototypes=16"],  # multi-crop, masks
    "mae": [*VIT, "method.decoder_dim=32", "method.decoder_depth=1"],  # other masks
    # On photos of several shapes; AdamW, since Muon rounds to bfloat16, and so makes more of the views' rounding.
    "simclr": ["encoder.width=8", "image_size=16", "optimizer.name=adamw", "optimizer.lr=2e-3"],
    # RandAugment, and labelled images with views of their own; mixtures, banks, graphs, directions
    **{name: FEW for name in declared("method") if "labels" in find("method", name).needs and name != "distillation"},
}
FITS = {  # twelve images of 16 pixels in a step, 46 in all
    "dino": ["method.local_size=8"],
    "lejepa": ["method.local_size=8"],
    "exemplar": ["method.classes=30"],
    "moco": ["method.queue=36"],
    "nnclr": ["method.queue=36"],
    "simclr_v2": ["method.queue=36"],
    "swav": ["method.queue=36", "method.local_size=8"],
    "supervised": FEW,
}
# Every other method, with the settings that all methods are checked with, on two workers. Left out are the two whose
# trained network has seen images of another kind.
OTHERS = {
    name: [*settings(name)[1:], *FITS.get(name, [])]
    for name in METHODS
    if name not in {*RUNS, "distillation", "finetune"}
}
# Tasks beside a teacher that draw tiles, turn images, keep a bank of them and change the encoder.
TASKS = "[{name: jigsaw, tile: 0.5, width: 6}, {name: decoupled_rotnet, negatives: 6}, colorization, context_encoder]"
OTHERS["byol beside"] = ["encoder.width=8", "image_size=32", f"beside={TASKS}"]
Workers = Callable[[int], list[dict]]  # the views and weights of each of that many workers
CASES = [(2, name) for name in [*RUNS, *OTHERS]] + [(count, name) for count in (3, 4) for name in RUNS]
# How far views and weights may differ. A worker pads photos to the largest of its own, so positions in them are rounded
# otherwise. Other views would differ by about 1, and change weights by 1e-3.
# MSN's positions that are seldom kept have gradients near zero.
EXACT, ROUNDED = (0.0, 1e-8), {"simclr": (1e-4, 3e-5), "msn": (0.0, 1e-6)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two folders of 64 colour images in two classes, all different: of 16 x 16, and of several shapes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(64):
        rough = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        for kind, shape in (("same", (16, 16)), ("several", (16 + number % 23, 16 + 7 * number % 29))):
            place = folder / kind / "train" / f"class{number % 2}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            rough.resize(shape, Image.Resampling.BICUBIC).save(place)
    return folder


@pytest.fixture(scope="module")
def together(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Workers:
    """Return the views and weights of each of that many workers, which train once."""

    @cache
    def workers(count: int) -> list[dict]:
        names = [name for each, name in CASES if each == count]
        return processes(count, everything, names, str(photos), str(tmp_path_factory.mktemp("runs")), timeout=600)

    return workers


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return the views and weights of one process."""
    return everything([*RUNS, *OTHERS], str(photos), str(tmp_path_factory.mktemp("alone")))


def everything(names: list[str], photos: str, directory: str) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Return the views of an epoch and the weights after it, of every run."""
    torch.set_num_threads(1)
    runs = {name: a_run(name, photos, directory) for name in names}
    return {
        "views": {name: seen(run) for name, run in runs.items()},
        "weights": {name: trained(run, Path(directory, name)) for name, run in runs.items()},
    }


def a_run(name: str, photos: str, directory: str) -> Run:
    root = Path(photos, "several" if name == "simclr" else "same")
    images = ["data=folder", f"data.root={root}", f"data.cache={directory}"]
    return load_run(
        None,
        [f"method={name.split()[0]}", f"workers={distributed.world_size()}", *images, *SHARED, *(RUNS | OTHERS)[name]],
    )


def seen(run: Run) -> dict[str, Tensor]:
    """Return this worker's views and indices of every step."""
    data = load_data(run.data.name, run.data.config, run.data.settings, run.seed)
    info = fitted(run, data.info)
    loader = BatchLoader(run, data, info, build_method(run, info), torch.device("cpu"))
    found = {}
    for step, batch in enumerate(loader.epoch(0, 0)):
        found |= {f"step {step} view {place}": view for place, view in enumerate(batch.views)}
        found[f"step {step} indices"] = batch.indices
        if batch.labelled is not None:
            found |= {f"step {step} labelled {place}": view for place, view in enumerate(batch.labelled.views)}
            found[f"step {step} targets"] = batch.labelled.targets
    return found


def trained(run: Run, directory: Path) -> dict[str, Tensor]:
    """Return all weights, teachers, statistics and queues after three steps of the loop.

    In float64: where a gradient should be zero (a bias before a batch norm), float32 leaves a rounding error that
    differs with the number of workers, and AdamW makes a whole step of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        laid = BatchLoader._in_layout
        patch.setattr(BatchLoader, "_in_layout", lambda self, images: laid(self, images).double())
        patch.setattr(assemble, "build_method", lambda run, info: build_method(run, info).double())
        *_, last = train(run, directory)
    assert last.checkpoint is not None
    return load_checkpoint(last.checkpoint)["method"]


@pytest.mark.parametrize(("count", "name"), CASES)
def test_workers_see_the_views_of_one_process(count: int, name: str, together: Workers, alone: dict):
    whole = alone["views"][name]
    assert any(key.startswith(("step 2 view", "step 2 labelled")) for key in whole)
    for key, value in whole.items():
        shares = torch.cat([worker["views"][name][key] for worker in together(count)])
        assert torch.allclose(shares, value, rtol=0, atol=ROUNDED.get(name, EXACT)[0]), key


@pytest.mark.parametrize(("count", "name"), CASES)
def test_workers_end_in_the_weights_of_one_process(count: int, name: str, together: Workers, alone: dict):
    weights, allowed = alone["weights"][name], ROUNDED.get(name, EXACT)[1]
    for worker in together(count):
        assert worker["weights"][name].keys() == weights.keys()
        for key, value in weights.items():
            # Other views change weights by 1e-3. AdamW divides by gradients, so rounding errors of small ones grow;
            # Muon makes steps of 5e-3.
            torch.testing.assert_close(
                worker["weights"][name][key], value, rtol=1e-7, atol=allowed, msg=lambda m, k=key: f"{k}: {m}"
            )

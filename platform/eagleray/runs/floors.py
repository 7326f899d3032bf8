"""Measure floors (`config.floors`).

They are evaluated like runs, on features that need no trained network.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eagleray.blocks.patch_features import (
    LARGEST,
    drawn_images,
    drawn_patches,
    fit_patch_features,
    in_bytes,
    shrunk,
    side_for,
)
from eagleray.config import Run
from eagleray.config.floors import FloorKind
from eagleray.config.metrics import TEST, Table, metrics_of
from eagleray.config.settings import settings
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.seeds import generator
from eagleray.runs.assemble import Assembly, assemble, images_of
from eagleray.runs.measured import Measured

Encode = Callable[[Tensor], Tensor]  # normalised images [N, C, H, W] -> features [N, D]
MEASURED_WITH = ("image_size", "evaluate", "precision", "seed")  # settings that matter to every kind


@dataclass(frozen=True)
class Floor:
    """A floor, to be measured with one seed.

    The seed is one of those of the runs.
    """

    kind: FloorKind
    label: str  # "random init"
    point: str  # "random init convnet digits": the same for all seeds, different for all other floors
    run: Run  # whose data, encoder and seed it takes

    @property
    def name(self) -> str:
        """The name of its record."""
        return f"{self.point} seed{self.run.seed}"

    @property
    def params(self) -> dict[str, Any]:
        """The settings that its numbers depend on."""
        sections = (*KINDS[self.kind].depends_on, *MEASURED_WITH)
        return {key: value for key, value in settings(self.run).items() if key.partition(".")[0] in sections}

    @property
    def tags(self) -> dict[str, str]:
        """The tags of its record.

        They place it in the sweep.
        """
        return {"kind": "floor", "floor": self.kind, "point": self.point, "label": self.label}


def floors(runs: Iterable[Run], kinds: Sequence[FloorKind], metric: str) -> Iterator[Floor]:
    """Yield the floors of some runs that are compared by a metric.

    There is one for each seed, and for each encoder and dataset that a floor depends on; none that has no such metric.
    """
    known: dict[str, list[str]] = {}  # name -> what is measured under it
    yielded = set[tuple[str, int]]()
    for run in runs:
        file, known_metrics = run.file(), metrics_of(run)
        for kind in kinds:
            if not _has(kind, metric, known_metrics):
                continue
            label, keys = KINDS[kind].label(run), KINDS[kind].depends_on
            encoding = run.evaluate.size, run.evaluate.mirror, run.evaluate.shift
            seen = [run.image_size, *(encoding if "encoder" in keys else [])]
            what = json.dumps([*(file[key] for key in keys), *seen])
            name = " ".join([label, *(getattr(run, key).title for key in keys)])
            others = known.setdefault(name, [])
            if what not in others:
                others.append(what)
            number = others.index(what) + 1
            point = f"{name} {number}" if number > 1 else name
            if (point, run.seed) not in yielded:
                yielded.add((point, run.seed))
                yield Floor(kind, label, point, run)


def measure(kind: FloorKind, run: Run) -> Measured:
    """Return a floor's metrics on validation and test sets.

    They are those that need no trained method; of features that are no encoder's, those that are comparable.
    """
    data, known = images_of(run), metrics_of(run)
    if "encoder" not in KINDS[kind].depends_on:  # enlarging, or means over copies, would only blur pixels
        own = data.info.image_size
        size = max(run.image_size or own, min(run.evaluate.size or 0, own))
        evaluate = run.evaluate.model_copy(update={"size": None, "mirror": False, "shift": 0})
        run = run.model_copy(update={"image_size": size, "evaluate": evaluate})
    built = assemble(run, data=data)
    found = built.evaluation.measure(KINDS[kind].features(built), built.autocast, test=True)
    return found.only([name for name in found if _has(kind, name, known)])


def _has(kind: FloorKind, metric: str, known: Table) -> bool:
    """Tell whether a metric of a floor can be compared: what grows with the width of features is an encoder's alone."""
    one = known.get(metric.removeprefix(TEST))
    return "encoder" in KINDS[kind].depends_on or one is None or not one.of_encoder


def pixels(images: Tensor) -> Tensor:
    """Return the pixels of shrunk images as features.

    [N, C, H, W] -> [N, C * h * w].
    """
    return shrunk(images).flatten(1)


def _kmeans(built: Assembly) -> Encode:
    """Fit patch features to the training images.

    Labels are not used.
    """
    images, loader, seed = built.data.train, built.loader, built.run.seed
    side, draw = side_for(min(LARGEST, loader.info.image_size)), generator(seed, purpose="patches")
    chosen = drawn_images(len(images), draw)
    batches = (_in_bytes(loader.evaluation_view(batch), loader.info) for batch in images.batches(chosen.split(64)))
    features = fit_patch_features(drawn_patches(batches, len(chosen), side, draw), side, seed=seed)
    return lambda normalised: features(_in_bytes(normalised, loader.info))


def _in_bytes(normalised: Tensor, info: DataInfo) -> Tensor:
    """Undo the normalising, and shrink.

    Numbers are from 0 to 255, with at most 32 pixels a side.
    """
    return shrunk(in_bytes(normalised, info.mean, info.std))


@dataclass(frozen=True)
class _Kind:
    """How a kind of floor is named and measured."""

    label: Callable[[Run], str]
    depends_on: tuple[str, ...]  # sections of a run file
    features: Callable[[Assembly], Encode]


KINDS: dict[FloorKind, _Kind] = {
    "random": _Kind(
        lambda run: run.encoder.declaration.load().start(run.encoder.config),
        ("encoder", "data"),
        lambda built: built.method.eval().encode,
    ),
    "pixels": _Kind(lambda _: "raw pixels", ("data",), lambda _: pixels),
    "kmeans": _Kind(lambda _: "k-means patches", ("data",), _kmeans),
}

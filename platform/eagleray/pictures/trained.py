"""A trained run as its pictures see it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from eagleray.contracts.features import evenly
from eagleray.data.images import Images
from eagleray.report.numbers import number
from eagleray.runs.assemble import Assembly
from eagleray.runs.checkpoint import newest_checkpoint
from eagleray.runs.preview import chosen
from eagleray.runs.record import Record
from eagleray.runs.restore import recorded_run, restored

ENOUGH = 500  # validation images for a map; a tenth of a small folder is less


@dataclass(frozen=True)
class Trained:
    """A run with its newest weights, and the images that its pictures are made of."""

    record: Record
    built: Assembly  # its method is in evaluation mode
    images: Images  # evenly spaced ones of the validation images, or of the training images where those are few
    part: str  # which of the two

    @classmethod
    def of(cls, record: Record, most: int) -> Self:
        """Restore a run.

        Args:
            record: of the run.
            most: the images that are encoded, at most.

        Raises:
            ConfigError: there is no checkpoint, or it does not fit.
        """
        built = restored(recorded_run(record), record.directory)
        built.method.eval()
        held = built.data.validation
        images, part = (held, "validation") if held and len(held) >= ENOUGH else (built.data.train, "training")
        return cls(record, built, images.only(evenly(torch.arange(len(images)), most).numpy()), part)

    @cached_property
    def features(self) -> Tensor:
        """The features of the images, float32 [N, D]."""
        return self.built.evaluation.encode(self.built.method.encode, self.images, self.built.autocast).cpu()

    @property
    def labels(self) -> np.ndarray | None:
        """Classes of the images, int64 [N], -1 unknown; None: none is known."""
        labels = self.images.labels
        return None if labels is None or (labels < 0).all() else labels

    def class_of(self, place: int) -> str:
        """Return the name of an image's class; empty: unknown."""
        return "" if self.labels is None else self.name_of(int(self.labels[place]))

    def name_of(self, label: int) -> str:
        """Return the name of a class; empty: -1, unknown."""
        return (self.built.data.class_names or ())[label] if label >= 0 else ""

    def samples(self, count: int) -> list[int]:
        """Choose some images, spread over the classes, or over the folder if there are none."""
        return chosen(np.arange(len(self.images)), self.labels, count)

    def pixels(self, places: list[int]) -> list[np.ndarray]:
        """Return images as they are stored, uint8 [H, W, 3] each."""
        batches = self.images.batches(torch.tensor(places).split(256))
        return [image.expand(3, -1, -1).permute(1, 2, 0).numpy() for batch in batches for image in batch]

    def inputs(self, places: list[int]) -> Tensor:
        """Return images as the network gets them, float [N, C, S, S]."""
        (batch,) = self.images.batches([torch.tensor(places)])
        return self.built.loader.evaluation_view(batch)

    def visible(self, inputs: Tensor) -> list[np.ndarray]:
        """Undo the normalising: float [N, C, S, S] -> float [S, S, 3] in 0..1 each."""
        info = self.built.loader.info
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (info.mean, info.std))
        shown = (inputs.cpu().float() * std + mean).clamp(0, 1)
        return list(shown.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())

    @cached_property
    def epoch(self) -> str:
        """How long the weights were trained."""
        saved = newest_checkpoint(self.record.directory)
        assert saved is not None, "a restored run has a checkpoint"
        return f"epoch {self.epoch_of(int(saved.stem.split('-')[1])):g}"

    def epoch_of(self, step: int) -> float:
        """Return how many epochs some steps are."""
        return round(step / self.built.loader.steps_per_epoch, 2)

    def about(self, *metrics: str) -> str:
        """Say which run, weights and images a picture shows, and numbers that the run has recorded."""
        known = {**(rows[-1] if (rows := self.record.metrics()) else {}), **self.record.summary}
        numbers = [f"{name} {number(known[name])}" for name in metrics if name in known]
        run, names = self.built.run, f"{self.record.experiment}/{self.record.directory.name}"
        what = f"{run.method.name} with {run.encoder.name} on {run.data.name}"
        return ", ".join([f"{names}: {what}", self.epoch, f"{len(self.images):,} {self.part} images", *numbers])

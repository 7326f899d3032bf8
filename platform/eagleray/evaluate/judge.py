"""What a representation is worth: every number that a run reports beside its loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from eagleray import distributed
from eagleray.config import Run
from eagleray.data import Data, Images
from eagleray.evaluate.collapse import pair_metrics, spread_metrics
from eagleray.evaluate.features import Features
from eagleray.evaluate.knn import knn
from eagleray.evaluate.linear import linear_probe
from eagleray.feed import Feed
from eagleray.method import Method, StepResult

PAIRS = 1024  # images whose two views are compared
Encode = Callable[[Tensor], Tensor]  # normalised images [N, C, H, W] -> features [N, D]


class Judge:
    """Evaluates the methods of one run: each part of the data is encoded once, and everything follows from that.

    Args:
        run: which evaluators, and their settings.
        data: train is what the probes learn from; validation is judged, and test when it is asked for.
        feed: how images are shown.
    """

    def __init__(self, run: Run, data: Data, feed: Feed):
        self.settings, self.seed, self.data, self.feed = run.evaluate, run.seed, data, feed
        self.has_classifier = run.labels is not None

    def __call__(self, method: Method, autocast: AbstractContextManager, *, final: bool) -> dict[str, float]:
        """The metrics of a method as it is now; leaves it in training mode."""
        linear = self.settings.linear == "always" or (final and self.settings.linear == "end")
        method.eval()
        metrics = self.judge(method.encode, autocast, linear=linear, test=final and self.settings.test)
        metrics |= self._pairs(method.encode, autocast)
        if self.has_classifier:
            metrics |= self._accuracy(method, autocast, test=final and self.settings.test)
        method.train()
        return metrics

    def judge(
        self, encode: Encode, autocast: AbstractContextManager, *, linear: bool, test: bool
    ) -> dict[str, float]:
        """kNN, linear probe and spread of any encoding, raw pixels too."""
        train = self._features(self.data.train, encode, autocast)
        shown = self._features(self.data.validation or self.data.train, encode, autocast)
        metrics = spread_metrics(shown.features)
        if train.labels is None:
            return metrics
        if self.data.validation is not None:
            metrics |= self._probes(train, shown, linear)
        if test and self.data.test is not None and self.data.test.labels is not None:
            held = self._probes(train, self._features(self.data.test, encode, autocast), linear, shown)
            metrics |= {f"test_{name}": value for name, value in held.items()}
        return metrics

    def encode(self, encode: Encode, images: Images, autocast: AbstractContextManager | None = None) -> Tensor:
        """Features of all images in their order, float32 [N, D], each worker encoding a share."""
        rank, world, count = distributed.rank(), distributed.world_size(), len(images)
        share = -(-count // world)
        # Shares are equal, as gathering wants them; the last ones repeat the last image, and lose it below.
        mine = torch.arange(rank * share, (rank + 1) * share).clamp_(max=count - 1)
        parts = []
        with torch.no_grad(), autocast or nullcontext():
            for batch in images.batches(list(mine.split(self.settings.batch_size))):
                parts.append(encode(self.feed.plain(batch)).float())
        return distributed.gather(torch.cat(parts))[:count]

    def _features(self, images: Images, encode: Encode, autocast: AbstractContextManager) -> Features:
        labels = None if images.labels is None else torch.from_numpy(images.labels)
        return Features(self.encode(encode, images, autocast).cpu(), labels)

    def _probes(
        self, train: Features, shown: Features, linear: bool, chosen_on: Features | None = None
    ) -> dict[str, float]:
        train = train.labelled()
        metrics = knn(train, shown, k=self.settings.k, temperature=self.settings.knn_temperature)
        if linear:
            metrics |= linear_probe(train, shown, seed=self.seed)
        return metrics

    def _pairs(self, encode: Encode, autocast: AbstractContextManager) -> dict[str, float]:
        """Alignment and energies of two views of the same images."""
        images = self.data.validation or self.data.train
        few = torch.arange(min(PAIRS, len(images)))
        if not self.feed.views:
            return {}
        with torch.no_grad(), autocast:
            first, second = (encode(v).float().cpu() for v in self.feed.pairs(next(iter(images.batches([few])))))
        return pair_metrics(first, second)

    def _accuracy(self, method: Method, autocast: AbstractContextManager, *, test: bool) -> dict[str, float]:
        """Accuracy of the method's own classifier."""
        parts = {"accuracy": self.data.validation, "test_accuracy": self.data.test if test else None}
        metrics = {}
        for name, images in parts.items():
            if images is not None and images.labels is not None:
                guess = self.encode(method.classify, images, autocast).argmax(1).cpu()
                metrics[name] = float((guess == torch.from_numpy(images.labels)).float().mean())
        return metrics


def batch_health(result: StepResult) -> dict[str, float]:
    """Whether the embeddings the loss sees have collapsed: their spread and rank over the last batch, as `z_…`."""
    spread = spread_metrics(torch.cat([z.float() for z in result.embeddings]))
    return {f"z_{name}": spread[name] for name in ("std", "rank")}


def collapsed(metrics: dict[str, float]) -> bool:
    """Whether all images have become (nearly) one point to the loss: 1 is isotropic, 0 a single point."""
    return metrics["z_std"] < 0.05

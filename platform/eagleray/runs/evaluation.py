"""What a representation is worth: every number that a run reports beside its loss."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from eagleray.blocks import distributed
from eagleray.config import Run
from eagleray.contracts.features import Features, accuracy
from eagleray.contracts.method import Method
from eagleray.data.images import Data, Images
from eagleray.data.loader import BatchLoader
from eagleray.evaluators.collapse import collapse
from eagleray.evaluators.knn import knn
from eagleray.evaluators.linear import linear

PAIRS = 1024  # images of which two views are compared
Encode = Callable[[Tensor], Tensor]  # normalised images [N, C, H, W] -> features [N, D]


class Evaluation:
    """Evaluates the methods of one run: each part of the data is encoded once, and everything follows from that.

    Args:
        run: which evaluators, and their settings.
        data: the probes learn from train, and are judged on validation; on test when it is asked for.
        feed: how images are shown.
    """

    def __init__(self, run: Run, data: Data, feed: BatchLoader):
        self.settings, self.seed, self.data, self.feed = run.evaluate, run.seed, data, feed
        self.has_classifier = run.labels is not None

    def __call__(self, method: Method, autocast: AbstractContextManager, *, final: bool) -> dict[str, float]:
        """The metrics of a method as it is now; leaves it in training mode."""
        probe = self.settings.linear == "always" or (final and self.settings.linear == "end")
        test = final and self.settings.test
        method.eval()
        metrics = self.judge(method.encode, autocast, probe=probe, test=test) | self._pairs(method.encode, autocast)
        if self.has_classifier:
            metrics |= self._accuracy(method, autocast, test=test)
        method.train()
        return metrics

    def judge(self, encode: Encode, autocast: AbstractContextManager, *, probe: bool, test: bool) -> dict[str, float]:
        """kNN, linear probe and spread of any encoding, raw pixels too.

        Args:
            encode: what is judged.
            autocast: the precision it runs in.
            probe: fit the linear probe too.
            test: measure the test part too, as `test_…`; the probe's penalty is then chosen on validation.
        """
        train = self._features(self.data.train, encode, autocast)
        shown = train
        if self.data.validation is not None:
            shown = self._features(self.data.validation, encode, autocast)
        metrics = collapse(shown.features)
        if train.labels is None:
            return metrics
        if shown is not train:
            metrics |= self._probes(train, shown, probe)
        if test and self.data.test is not None:
            chosen_on = None if shown is train else shown
            held = self._probes(train, self._features(self.data.test, encode, autocast), probe, chosen_on)
            metrics |= {f"test_{name}": value for name, value in held.items()}
        return metrics

    def embed(self, method: Method, autocast: AbstractContextManager) -> Tensor:
        """Features of all training images, float32 [samples, D]; leaves the method in training mode."""
        method.eval()
        features = self.encode(method.encode, self.data.train, autocast)
        method.train()
        return features

    def encode(self, encode: Encode, images: Images, autocast: AbstractContextManager) -> Tensor:
        """What `encode` says of all images in their order, float32 [N, D], each worker encoding a share."""
        rank, world, count = distributed.rank(), distributed.world_size(), len(images)
        share = -(-count // world)
        # Shares are equal, as gathering wants them; the last ones repeat the last image, and lose it below.
        mine = torch.arange(rank * share, (rank + 1) * share).clamp_(max=count - 1)
        with torch.no_grad(), autocast:
            batches = images.batches(list(mine.split(self.settings.batch_size)))
            parts = [encode(self.feed.plain(batch)).float() for batch in batches]
        return distributed.gather(torch.cat(parts))[:count]

    def _features(self, images: Images, encode: Encode, autocast: AbstractContextManager) -> Features:
        features = self.encode(encode, images, autocast)
        labels = None if images.labels is None else torch.from_numpy(images.labels).to(features.device)
        if labels is None or bool((labels >= 0).all()):
            return Features(features, labels)
        known = labels >= 0  # unlabelled images train the method; probes cannot learn from them
        return Features(features[known], labels[known])

    def _probes(
        self, train: Features, shown: Features, probe: bool, chosen_on: Features | None = None
    ) -> dict[str, float]:
        metrics = knn(train, shown, k=self.settings.k, temperature=self.settings.knn_temperature)
        if probe:
            metrics |= linear(train, shown, validation=chosen_on, seed=self.seed)
        return metrics

    def _pairs(self, encode: Encode, autocast: AbstractContextManager) -> dict[str, float]:
        """Alignment, and mean cosines of positive and negative pairs, of two views of the same images."""
        if not self.feed.views:
            return {}
        images = self.data.validation or self.data.train
        batch = next(images.batches([torch.arange(min(PAIRS, len(images)))]))
        with torch.no_grad(), autocast:
            views = [encode(view).float() for view in self.feed.pairs(batch)]
        metrics = collapse(views)
        return {name: metrics[name] for name in ("alignment", "positive", "negative") if name in metrics}

    def _accuracy(self, method: Method, autocast: AbstractContextManager, *, test: bool) -> dict[str, float]:
        """Accuracy of the method's own classifier."""
        parts = {"accuracy": self.data.validation, "test_accuracy": self.data.test if test else None}
        metrics = {}
        for name, images in parts.items():
            if images is not None and images.labels is not None:
                guess = self.encode(method.classify, images, autocast).argmax(1).cpu()
                metrics[name] = accuracy(guess, torch.from_numpy(images.labels))
        return metrics


def batch_health(embeddings: Sequence[Tensor]) -> dict[str, float]:
    """Whether the embeddings that the loss sees have collapsed: spread and rank of a batch, as `z_std` and `z_rank`."""
    metrics = collapse(embeddings[0])
    return {f"z_{name}": metrics[name] for name in ("std", "rank")}


def collapsed(metrics: dict[str, float]) -> bool:
    """Whether all images have become (nearly) one point to the loss: `z_std` is 1 when isotropic, 0 for one point."""
    return metrics["z_std"] < 0.05

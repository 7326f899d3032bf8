"""Evaluation of a representation.

It gives every number that a run reports in addition to its loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from eagleray.augment.copies import mean_over_copies
from eagleray.blocks import distributed
from eagleray.config import Run
from eagleray.config.metrics import has, needs
from eagleray.config.sections import DataChoice, Labels
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.evaluator import Change, Evaluator, Found
from eagleray.contracts.features import SAMPLES, Features, evenly
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Need
from eagleray.contracts.view import View
from eagleray.data.images import Data, Images, load_data
from eagleray.data.loader import BatchLoader
from eagleray.evaluators.balance import ONE_CLASS
from eagleray.evaluators.collapse import GATE, collapse
from eagleray.runs.finetuning import Tuning, fine_tuned
from eagleray.runs.measured import Measured, measured
from eagleray.runs.other_images import check_other, keys_named

VIEWED = 256  # images of which views are made at a time
Encode = Callable[[Tensor], Tensor]  # normalised images [N, C, H, W] -> features [N, D]


class Evaluation:
    """Evaluates the method of a run.

    Each split is encoded once, and evaluators read the features they ask for.

    Args:
        run: names the evaluators and their settings.
        data: classifiers are fitted on the training set and evaluated on the validation set; on request on the test
            set too.
        loader: prepares images for the network.
        untrained: builds the method as it is before any training.

    Raises:
        ConfigError: images that an evaluator names are missing, or do not fit the network.
    """

    def __init__(self, run: Run, data: Data, loader: BatchLoader, untrained: Callable[[], Method]):
        self.run, self.settings, self.data, self.loader = run, run.evaluate, data, loader
        self.untrained = untrained
        self.before = dict[Images, Features]()  # what it makes of images: the same at every evaluation
        self.needs = {name: needs(one) for name, one in run.evaluate.evaluators.items()}
        # Images that evaluators name beside the run's, loaded now, so that no training ends with what is wrong of them.
        self.others = [(choice, self._other(name, choice)) for name, choice in run.evaluate.others.items()]
        self.evaluators: dict[str, Evaluator] = {
            name: one.load()(getattr(run.evaluate, name)) for name, one in run.evaluate.evaluators.items()
        }

    @property
    def shown(self) -> Images:
        """The evaluated images, except at the end those of the test set."""
        return self.data.train if self.data.validation is None else self.data.validation

    @cached_property
    def unlabelled(self) -> Images:
        """At most 2,048 training images of known class that are not labelled for training, evenly spaced."""
        train, seen = self.data.train, self.loader.labelled_set
        assert train.labels is not None
        assert seen is not None, "without labelled images there is no classifier"
        others = train.labels >= 0
        others[seen[0].cpu().numpy()] = False
        return train.only(evenly(torch.from_numpy(others).nonzero().flatten(), SAMPLES).numpy())

    def __call__(self, method: Method, autocast: AbstractContextManager, *, final: bool) -> Measured:
        """Return the metrics of a method as it is now.

        Set it to training mode.
        """
        method.eval()
        found = self._measured(method.encode, method, autocast, final=final, test=final and self.settings.test)
        method.train()
        return found

    def measure(self, encode: Encode, autocast: AbstractContextManager, *, test: bool, final: bool = True) -> Measured:
        """Return the metrics of any encoding.

        It may be raw pixels, for example: all metrics that need no method are returned.

        Args:
            encode: the encoding to evaluate.
            autocast: the precision it runs in.
            test: evaluate on the test set too, as `test_…`; settings are still chosen on the validation set.
            final: also run the evaluators that run only at the end of a run.
        """
        return self._measured(encode, None, autocast, final=final, test=test)

    def embed(self, method: Method, autocast: AbstractContextManager) -> Tensor:
        """Return features of all training images, float32 [samples, D].

        Set the method to training mode.
        """
        method.eval()
        features = self.encode(method.encode, self.data.train, autocast)
        method.train()
        return features

    def training_images(self, places: Tensor) -> Iterator[Tensor]:
        """Yield the training images at some places, [n], as they are evaluated: batches of [.., C, S, S]."""
        for batch in self.data.train.batches(places.split(self.settings.batch_size)):
            yield self.loader.evaluation_view(batch)

    def encode(
        self, encode: Encode, images: Images, autocast: AbstractContextManager, change: Change | None = None
    ) -> Tensor:
        """Encode all images in their order, float32 [N, D].

        Each worker encodes a share. `change` changes their pixels before.
        """
        rank, world, count = distributed.rank(), distributed.world_size(), len(images)
        share = -(-count // world)
        # Gathering needs equal shares: the last ones repeat the last image, which is cut off below.
        mine = torch.arange(rank * share, (rank + 1) * share).clamp_(max=count - 1).split(self.settings.batch_size)
        with torch.no_grad(), autocast:
            views = (
                self.loader.evaluation_view(batch, None if change is None else partial(change, places=places))
                for places, batch in zip(mine, images.batches(mine), strict=True)
            )
            parts = [self.seen(encode, view) for view in views]
        return distributed.gather(torch.cat(parts))[:count]

    def seen(self, encode: Encode, view: Tensor) -> Tensor:
        """Encode prepared images as the run says: float32 [N, D]."""
        info = self.loader.info
        return mean_over_copies(encode, view, info.mirrored, info.shift)

    def of_untrained(self, images: Images, autocast: AbstractContextManager) -> Features:
        """Return what the network before any training makes of some images (`Encodings.untrained`)."""
        if images not in self.before:
            some = images.only(evenly(torch.arange(len(images)), SAMPLES).numpy())
            with torch.random.fork_rng():  # its weights are drawn from the generator that training draws from
                method = self.untrained().eval()
            self.before[images] = _labelled(self.encode(method.encode, some, autocast), some)
        return self.before[images]

    def _other(self, name: str, choice: DataChoice) -> Data:
        """Load the images that an evaluator names, split by the run's seed."""
        with keys_named(name):
            found = load_data(choice.name, choice.config, choice.settings, self.run.seed)
            check_other(choice, labels=found.train.labels is not None, validation=found.validation is not None)
            if found.info.channels > self.loader.info.channels:
                remedy = "set data.channels=grey" if hasattr(choice.config, "channels") else "name others"
                raise ConfigError(f"data={choice.title} has colours, and the network takes grey images: {remedy}")
        return found

    def _measured(
        self, encode: Encode, method: Method | None, autocast: AbstractContextManager, *, final: bool, test: bool
    ) -> Measured:
        data, available, found = self.data, self._has(method), Measured()
        encoded = Encoded(self, encode, method, autocast, data, self.shown)
        for name in self.evaluators:
            if self.settings.when(name) not in (("always", "end") if final else ("always",)):
                continue
            labels, others = "labels" in self.needs[name], name in self.settings.others
            if self.needs[name] <= available and (data.validation is not None or not labels):
                found |= self._found(name, encoded)
            if self.needs[name] <= available and (labels or others) and test and data.test is not None:
                found |= self._found(name, encoded.on(data.test, chosen_by=data.validation)).on_test()
        return found

    def _has(self, method: Method | None) -> frozenset[Need]:
        available = has(self.run, labels=self.data.train.labels is not None)
        return available if method is not None else available - {"classifier", "error", "tokens", "network", "stages"}

    def _found(self, name: str, encoded: "Encoded") -> Measured:
        evaluator = self.evaluators[name]
        result = evaluator(encoded)
        found = result if isinstance(result, Found) else Found(result)
        if unknown := sorted({*found.numbers, *found.intervals} - set(evaluator.metrics)):
            raise ConfigError(f"the evaluator {name} returns {unknown[0]}, which it does not declare in `metrics`")
        images = len(encoded.evaluated) if found.images is None else found.images
        settings = evaluator.config.model_dump(mode="json", exclude={"when"})
        words = " ".join(f"{key}={value}" for key, value in settings.items())
        return measured(found, images, words, evaluator.metrics)


@dataclass(frozen=True)
class Encoded:
    """The `Encodings` of one network on some images."""

    evaluation: Evaluation
    encode: Encode
    method: Method | None
    autocast: AbstractContextManager
    data: Data
    images: Images  # the evaluated ones
    chosen_by: Images | None = None
    known: dict[tuple[Images, Encode], Features] = field(default_factory=dict)  # encoded already
    tuned: dict[Tuning, Method] = field(default_factory=dict)  # trained already

    @property
    def seed(self) -> int:
        return self.evaluation.run.seed

    @property
    def image_size(self) -> int:
        return self.evaluation.loader.info.image_size

    @property
    def train(self) -> Features:
        return self.of(self.data.train)

    @property
    def evaluated(self) -> Features:
        return self.of(self.images)

    @property
    def untrained(self) -> Features:
        return self.evaluation.of_untrained(self.images, self.autocast)

    @property
    def validation(self) -> Features | None:
        return None if self.chosen_by is None else self.of(self.chosen_by)

    @property
    def logits(self) -> Features:
        assert self.method is not None, "an evaluator that asks for logits needs a classifier, and says so"
        return self.through(self.method.classify).evaluated

    @property
    def guesses(self) -> Features | None:
        assert self.method is not None, "an evaluator that asks for guesses needs a classifier, and says so"
        images = self.evaluation.unlabelled
        return self.through(self.method.classify).of(images) if len(images) else None

    @property
    def errors(self) -> Features:
        return self.through(self._errors).evaluated

    @property
    def seen_errors(self) -> Features:
        train = self.data.train
        return self.through(self._errors).of(train.only(evenly(torch.arange(len(train)), SAMPLES).numpy()))

    def _errors(self, images: Tensor) -> Tensor:
        assert self.method is not None, "an evaluator that asks for errors needs a method, and says so"
        return self.method.error(images)[:, None]

    def fine_tuned(
        self, *, epochs: int, lr: float, per_class: int | None = None, fraction: float | None = None
    ) -> Features:
        assert self.method is not None, "an evaluator that trains further needs a network, and says so"
        tuning = Tuning(Labels(per_class=per_class, fraction=fraction, ratio=1), epochs, lr)
        if tuning not in self.tuned:
            self.tuned[tuning] = fine_tuned(self.method, tuning, self.evaluation.loader, self.autocast)
        return self.through(self.tuned[tuning].classify).evaluated

    def of(self, images: Images) -> Features:
        key = (images, self.encode)
        if key not in self.known:
            self.known[key] = _labelled(self.evaluation.encode(self.encode, images, self.autocast), images)
        return self.known[key]

    def views(self, views: Sequence[View], most: int) -> list[Features]:
        places = evenly(torch.arange(len(self.images)), most)
        batches = self.images.batches(list(places.split(VIEWED)))
        parts: list[list[Tensor]] = [[] for _ in views]
        with torch.no_grad(), self.autocast:
            for number, batch in enumerate(batches):
                for part, view in zip(parts, self.evaluation.loader.fixed(batch, views, number), strict=True):
                    part.append(self.evaluation.seen(self.encode, view))
        return [_labelled(torch.cat(part), self.images.only(places.numpy())) for part in parts]

    def through(self, encode: Encode) -> "Encoded":
        return replace(self, encode=encode)

    def elsewhere(self, data: DataChoice) -> "Encoded":
        there = next(loaded for choice, loaded in self.evaluation.others if choice == data)
        assert there.validation is not None, "other images are refused where none are held out"
        if self.images is not self.data.test:
            return replace(self, data=there, images=there.validation)
        return replace(self, data=there, images=there.test, chosen_by=there.validation)

    def changed(self, change: Change, most: int) -> Features:
        images = self.images.only(evenly(torch.arange(len(self.images)), most).numpy())
        return _labelled(self.evaluation.encode(self.encode, images, self.autocast, change), images)

    def on(self, images: Images, *, chosen_by: Images | None) -> "Encoded":
        """Return the same network, evaluated on other images.

        Features computed before are kept.
        """
        return replace(self, images=images, chosen_by=chosen_by)


def _labelled(features: Tensor, images: Images) -> Features:
    """Return features and labels of the labelled images.

    Classifiers cannot use the others.
    """
    labels = None if images.labels is None else torch.from_numpy(images.labels).to(features.device)
    if labels is None or bool((labels >= 0).all()):
        return Features(features, labels)
    known = labels >= 0
    return Features(features[known], labels[known])


def batch_health(embeddings: Sequence[Tensor]) -> dict[str, float]:
    """Return spread and rank of a batch's embeddings.

    They are `z_std` and `z_rank`, of the whole batch as the loss sees it.
    """
    metrics = collapse(distributed.gather(embeddings[0]))
    return {"z_std": metrics["std"], "z_rank": metrics["rank"]}


def collapsed(epochs: Sequence[Mapping[str, float]], loss: float | None = None, *, classes: bool = False) -> str:
    """Return in which way a run has collapsed; empty: it has not.

    Of the embeddings what counts is the fall since the first epoch: healthy methods may have little spread, in many
    directions, and some networks begin with little. A collapse within the first epoch shows only once it is complete.
    The features are compared with those of the untrained network, and the guesses of a classifier with the true
    classes, at the last two epochs that evaluated them: once may be the start of a training that recovers.

    Args:
        epochs: the metrics after each epoch so far.
        loss: that only collapse reaches (`Method.collapsed_loss`); None: no such loss.
        classes: whether the method learns classes: these need few directions, so that its classifier alone tells.
    """
    if classes:
        shares = _last_two(epochs, "entropy_share")
        return "the classifier gives nearly all images one class" if shares and max(shares) < ONE_CLASS else ""
    first, last = epochs[0], epochs[-1]
    if loss is not None and last["loss"] - loss < (first["loss"] - loss) / 100:
        return "all views agree: the loss is what only collapse reaches"
    if last["z_std"] < 0.01 or last["z_rank"] < 2:
        return "the embeddings are nearly one point or one line"
    if _extent(last) < _extent(first) / 10:
        return "the embeddings have a tenth of their first extent"
    shares = _last_two(epochs, "rank_share")
    if shares and max(shares) < GATE:
        return f"the features have {shares[-1]:.0%} of the directions of the untrained network"
    return ""


def _last_two(epochs: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """Return the last two values of a metric; none where it was measured less often."""
    values = [epoch[name] for epoch in epochs if name in epoch]
    return values[-2:] if len(values) > 1 else []


def _extent(metrics: Mapping[str, float]) -> float:
    """Return spread times directions, which `benchmarks/collapse.py` found to tell collapse best."""
    return metrics["z_std"] * metrics["z_rank"]

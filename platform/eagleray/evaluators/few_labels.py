"""The linear probe with few labels: what the features are worth to someone who has labelled a handful of images."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import Features
from eagleray.contracts.interval import CONFIDENCE, Interval
from eagleray.contracts.metric import Metric, Need, When
from eagleray.contracts.seeds import generator
from eagleray.evaluators.linear import train_probe

LABELS: frozenset[Need] = frozenset({"labels"})


class FewLabels(Evaluator):
    """The linear probe trained with few labels on frozen features, averaged over several draws of them."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """How many labels, and how often they are drawn."""

        per_class: Annotated[int, Field(ge=1, description="labels a class of linear_few")] = 10
        draws: Annotated[int, Field(ge=1, description="of labels; the mean is reported")] = 5

    config: Config
    when: ClassVar[When] = "never"  # it trains fifteen probes

    metrics: ClassVar[dict[str, Metric]] = {
        "linear_few": Metric(
            "share that the linear probe classifies right with evaluate.few_labels.per_class labels of each class",
            "higher",
            needs=LABELS,
            interval="own",
        ),
        "linear_1_percent": Metric("the same with a hundredth of the labels", "higher", needs=LABELS, interval="own"),
        "linear_10_percent": Metric("the same with a tenth of the labels", "higher", needs=LABELS, interval="own"),
    }

    def __call__(self, encodings: Encodings) -> Found:
        train, evaluated, config = encodings.train, encodings.evaluated, self.config
        counts = torch.bincount(train.targets())
        few = {
            "linear_few": counts.clamp(max=config.per_class),
            "linear_1_percent": _share(counts, 0.01),
            "linear_10_percent": _share(counts, 0.1),
        }
        right = few_labels(train, evaluated, few, draws=config.draws, seed=encodings.seed)
        means = {name: answers.mean().item() for name, answers in right.items()}
        return Found(means, intervals={name: over_both(each) for name, each in right.items() if min(each.shape) > 1})


def _share(counts: Tensor, share: float) -> Tensor:
    """Return how many images a share of each class is, at least one."""
    return (counts * share).round().long().clamp(min=1).minimum(counts)


def few_labels(
    train: Features, test: Features, counts: Mapping[str, Tensor], *, draws: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """Return which images linear probes that are trained with few labels classify right.

    Args:
        train: images to draw from, with labels.
        test: images to classify, with labels.
        counts: name -> images of each class, int64 [classes].
        draws: of the images; a larger number of images holds those of a smaller one.
        seed: of the draws.

    Returns:
        name -> 1 where right and 0 where wrong, float64 [draws, images].

    Raises:
        ConfigError: as `linear`.

    Source: as in SimCLR (2002.05709, section 6), but of frozen features.
    """
    labels, truth = train.targets(), test.targets()
    found: dict[str, list[Tensor]] = {name: [] for name in counts}
    for draw in range(draws):
        order = torch.randperm(len(labels), generator=generator(seed, draw, purpose="few labels")).to(labels.device)
        place = torch.empty_like(order)  # of each image among those of its class, in the order of the draw
        for label in labels.unique():
            mine = order[labels[order] == label]
            place[mine] = torch.arange(len(mine), device=place.device)
        for name, count in counts.items():
            probe = train_probe(train.at(place < count[labels]), seed=seed)
            found[name].append(probe.predict(test.features) == truth)
    return {name: torch.stack(answers).double() for name, answers in found.items()}


def over_both(x: Tensor) -> Interval:
    """Return the t interval of the mean of x [draws, images], for other draws and other images.

    The variance of the mean is that of the draws' means and that of the images' means, less what both have of the
    noise that is left; its degrees of freedom are Satterthwaite's.

    Source: Owen 2007, The pigeonhole bootstrap, https://doi.org/10.1214/07-AOAS122
    """
    from scipy.special import stdtrit

    draws, images = x.shape
    of_draw, of_image = x.mean(1, keepdim=True), x.mean(0, keepdim=True)
    left = (x - of_draw - of_image + x.mean()).square().sum() / ((draws - 1) * (images - 1))
    first, second = (of_draw.var() / draws).item(), (of_image.var() / images).item()
    variance = max(first + second - left.item() / x.numel(), first, second)
    mean = x.mean().item()
    if not variance:
        return mean, mean
    free = variance**2 / (first**2 / (draws - 1) + second**2 / (images - 1))
    half = float(stdtrit(free, (1 + CONFIDENCE) / 2)) * variance**0.5
    return mean - half, mean + half

"""Robustness: what a linear probe, fitted on clean images, makes of corrupted ones.

As in Hendrycks, Dietterich 2019, https://arxiv.org/abs/1903.12261, but of frozen features, and with twelve of the
fifteen corruptions (`augment/corruptions.py`), so that a mean is not comparable with a published one.
"""

from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment.corruptions import CORRUPTIONS, corrupt
from eagleray.contracts.evaluator import Change, Encodings, Evaluator, Found
from eagleray.contracts.features import intervals
from eagleray.contracts.metric import Metric, Need, When
from eagleray.evaluators.linear import train_probe

LABELS: frozenset[Need] = frozenset({"labels"})
Severity = Annotated[int, Field(ge=1, le=5)]


class Corruptions(Evaluator):
    """Accuracy of the linear probe on corrupted images, and its ratio to that on the same images as they are.

    With p the probe of the clean training features, over the corruptions c and their severities s:

        corrupted_c      mean over s of accuracy(p, images corrupted by c at s)
        corrupted        mean over c of corrupted_c
        corrupted_ratio  corrupted / accuracy(p, the same images as they are)
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """Which images are corrupted, and how much."""

        images: Annotated[int, Field(ge=1, description="at most this many evaluated images, evenly spaced")] = 1000
        severities: Annotated[
            tuple[Severity, ...],
            Field(min_length=1, description="1 to 5, as in CIFAR-10-C; above 64 pixels ImageNet-C"),
        ] = (1, 2, 3, 4, 5)

    config: Config
    when: ClassVar[When] = "never"  # each image is corrupted and encoded sixty times

    metrics: ClassVar[dict[str, Metric]] = {
        "corrupted": Metric(
            "share of corrupted images that the linear probe classifies right, the mean of twelve corruptions",
            "higher",
            interval="own",
            needs=LABELS,
        ),
        "corrupted_ratio": Metric(
            "corrupted by the share of the same images, not corrupted: 1 the corruptions cost nothing",
            "higher",
            no_goal="features that tell little have little to lose",
            interval="own",
            needs=LABELS,
        ),
        "corrupted_gaussian_noise": Metric(
            "share with Gaussian noise, over the severities", "higher", interval="own", needs=LABELS
        ),
        "corrupted_shot_noise": Metric(
            "the same with Poisson noise of few photons", "higher", interval="own", needs=LABELS
        ),
        "corrupted_impulse_noise": Metric("the same with values set to 0 or 1", "higher", interval="own", needs=LABELS),
        "corrupted_defocus_blur": Metric("the same out of focus", "higher", interval="own", needs=LABELS),
        "corrupted_motion_blur": Metric("the same smeared along a line", "higher", interval="own", needs=LABELS),
        "corrupted_zoom_blur": Metric("the same smeared by zooming", "higher", interval="own", needs=LABELS),
        "corrupted_fog": Metric("the same in fog", "higher", interval="own", needs=LABELS),
        "corrupted_brightness": Metric("the same, brighter", "higher", interval="own", needs=LABELS),
        "corrupted_contrast": Metric("the same with less contrast", "higher", interval="own", needs=LABELS),
        "corrupted_elastic": Metric("the same, bent", "higher", interval="own", needs=LABELS),
        "corrupted_pixelate": Metric("the same in coarse pixels", "higher", interval="own", needs=LABELS),
        "corrupted_jpeg": Metric("the same, compressed by JPEG", "higher", interval="own", needs=LABELS),
    }

    def __call__(self, encodings: Encodings) -> Found:
        probe = train_probe(encodings.train, encodings.validation, seed=encodings.seed)

        def right(change: Change) -> Tensor:
            """Return whether the probe is right, [images]."""
            found = encodings.changed(change, self.config.images)
            return (probe.predict(found.features) == found.targets()).double()

        clean = right(lambda pixels, places: pixels)
        shares = {
            f"corrupted_{name}": torch.stack(
                [
                    right(partial(corrupt, name=name, severity=severity, seed=encodings.seed))
                    for severity in self.config.severities
                ]
            ).mean(0)
            for name in CORRUPTIONS
        }
        shares["corrupted"] = torch.stack(list(shares.values())).mean(0)
        values = {name: share.mean().item() for name, share in shares.items()}
        if before := clean.mean().item():
            ratio = values["corrupted_ratio"] = values["corrupted"] / before
            shares["corrupted_ratio"] = (shares["corrupted"] - ratio * clean) / before
        return Found(values, images=len(clean), intervals=intervals(values, shares))

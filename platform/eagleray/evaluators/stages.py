"""The linear probe after each stage of the encoder: pretext features often peak below the last layer.

As in Zhang et al. 2016, https://arxiv.org/abs/1603.08511, section 3.2, but on outputs averaged over positions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from eagleray.contracts.encoder import Encoder
from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import Features, accuracy
from eagleray.contracts.metric import Metric, Need, When
from eagleray.evaluators.linear import train_probe

QUARTERS = 4
NEEDS: frozenset[Need] = frozenset({"labels", "stages"})
PLACE = "it says where the network is best, not how good it is"


class Stages(Evaluator):
    """Accuracy of the linear probe after each quarter of the encoder.

    Of n stages, those that end a quarter count, ceil(k n / 4) for k = 1 to 4: the blocks of a convnet, the four groups
    of a ResNet, the transformer blocks of a ViT (with its last norm, pooled as its features), what timm counts of
    others. An encoder of fewer stages has one number for each. All are encoded in one pass.
    """

    class Config(BaseModel, frozen=True, extra="forbid"):
        """There is nothing to set."""

    config: Config
    when: ClassVar[When] = "never"  # it fits four probes

    metrics: ClassVar[dict[str, Metric]] = {
        "stage_1": Metric(
            "share that the linear probe classifies right after the first quarter",
            "higher",
            interval="wilson",
            needs=NEEDS,
        ),
        "stage_2": Metric("the same after half of the encoder", "higher", interval="wilson", needs=NEEDS),
        "stage_3": Metric("the same after three quarters", "higher", interval="wilson", needs=NEEDS),
        "stage_4": Metric("the same at its end", "higher", interval="wilson", needs=NEEDS),
        "best_stage": Metric(
            "number of the best of them; below the last: the features of the pretext task peak before the end",
            no_goal=PLACE,
            no_interval="it is a number of a stage; the stages have intervals",
            needs=NEEDS,
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        assert encodings.method is not None, "floors have no stages"
        of = Joined(next(each for each in encodings.method.backbone.modules() if isinstance(each, Encoder)))
        there, widths = encodings.through(of), of.widths(encodings.method.data.channels, encodings.image_size)
        train, shown = (_split(one, widths) for one in (there.train, there.evaluated))
        held_out = [None] * len(widths) if there.validation is None else _split(there.validation, widths)
        reached = [
            accuracy(train_probe(fitted, chosen_by, seed=there.seed).predict(asked.features), asked.targets())
            for fitted, chosen_by, asked in zip(train, held_out, shown, strict=True)
        ]
        best = 1 + reached.index(max(reached))
        numbers = {f"stage_{number}": value for number, value in enumerate(reached, 1)}
        return Found({**numbers, "best_stage": float(best)}, images=len(shown[0]))


@dataclass(frozen=True)
class Joined:
    """The quarters of an encoder as one encoding; equal for equal encoders, so that images are encoded once."""

    encoder: Encoder

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([each.float() for each in self.quarters(images)], 1)

    def quarters(self, images: Tensor) -> list[Tensor]:
        """Return the outputs that end a quarter."""
        stages = self.encoder.stages(images)
        count = min(QUARTERS, len(stages))
        return [stages[-(-number * len(stages) // count) - 1] for number in range(1, count + 1)]

    def widths(self, channels: int, size: int) -> list[int]:
        """Return how wide they are."""
        first = next(self.encoder.parameters())
        with torch.no_grad():
            return [each.shape[1] for each in self.quarters(torch.zeros(1, channels, size, size, device=first.device))]


def _split(joined: Features, widths: list[int]) -> list[Features]:
    return [Features(part.contiguous(), joined.labels) for part in joined.features.split(widths, 1)]

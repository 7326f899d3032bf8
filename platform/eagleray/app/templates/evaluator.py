"""NewPlugin: one plain sentence about what is measured."""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field

from eagleray.contracts.evaluator import Encodings, Evaluator
from eagleray.contracts.metric import Metric


class NewPlugin(Evaluator):
    """One sentence: how many directions of the features carry most of their variance."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        share: Annotated[float, Field(gt=0, lt=1, description="of the variance that counts as most")] = 0.9

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "new_plugin_directions": Metric("directions of the features that carry most of their variance", "higher")
    }

    def __call__(self, encodings: Encodings) -> dict[str, float]:
        variances = torch.linalg.eigvalsh(encodings.evaluated.features.T.cov()).flip(0).clamp_min(0)
        carried = variances.cumsum(0) / variances.sum().clamp_min(1e-12)
        return {"new_plugin_directions": float((carried < self.config.share).sum() + 1)}

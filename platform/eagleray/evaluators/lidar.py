"""How well the features tell images apart, in directions: views of one image against views of others.

The views are fixed: SimCLR's, whatever the method declares and whatever `augment` changes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment.papers import simclr_view
from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import SAMPLES, stacked
from eagleray.contracts.metric import GROWS, Metric, When

DELTA = 1e-4  # of the mean variance of a feature: keeps the spread within images invertible, as in the paper


class Lidar(Evaluator):
    """Rank of the linear discriminants between images (LiDAR), and how much of the features is of the image."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """How many images, and views of each."""

        images: int = Field(1000, ge=2, description="at most; more than features have dimensions, as the paper asks")
        views: int = Field(8, ge=2, description="of each image")

    config: Config
    when: ClassVar[When] = "never"  # it encodes thousands of views

    metrics: ClassVar[dict[str, Metric]] = {
        "lidar": Metric(
            "effective rank of the linear discriminants between images, by SimCLR's views (LiDAR)",
            "higher",
            caution="features that tell nothing of the images can have a high one; read it beside signal",
            of_encoder=True,
            no_interval=GROWS,
        ),
        "signal": Metric(
            "variance between images by that between views of one image, less what noise alone gives: 0 no image shows",
            "higher",
            no_goal="it says how invariant the features are to SimCLR's views, not how useful",
            no_interval="both the images and the views of each are drawn, and few are the views",
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        view = simclr_view(encodings.image_size)
        views = encodings.views([view] * self.config.views, self.config.images)
        return Found(lidar([one.features for one in views]), images=min(len(views[0]), SAMPLES))


def lidar(views: Sequence[Tensor]) -> dict[str, float]:
    """Compute LiDAR of embeddings [N, D], one for each view of the same N images.

    At most 2,048 images count. The embeddings are centred and scaled to a mean variance of 1, so that their scale does
    not matter. With m_i the mean of image i's q views, and D the width:

        B = covariance of the m_i,  W = covariance of views about their m_i, + delta I, delta = 1e-4
        lidar   exp(-sum p log p), p = l / sum(l), l the eigenvalues of W^-1/2 B W^-1/2
        signal  (tr B - tr W' / q) / tr W', W' without delta: B holds that much of W' by chance

    Both are 0 where nothing varies; signal is left out where no view differs from another of its image.

    Raises:
        ConfigError: fewer than two views, no images, NaN or infinite embeddings, or views of different shapes.

    Source: Thilak et al. 2023, LiDAR, https://arxiv.org/abs/2312.04000
    """
    x = stacked(views, least=2)
    number, count, width = x.shape
    x = x - x.mean((0, 1))
    variance = x.square().mean()
    if variance == 0 or count < 2:
        return {"lidar": 0.0, "signal": 0.0}
    x = x / variance.sqrt()
    means = x.mean(0)
    within = (x - means).flatten(0, 1)
    between, inside = means.T @ means / (count - 1), within.T @ within / (count * (number - 1))
    spread = inside.trace()
    root = torch.linalg.cholesky(inside + DELTA * torch.eye(width, dtype=x.dtype, device=x.device))
    half = torch.linalg.solve_triangular(root, between, upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.T, upper=False)).clamp_min(0)
    metrics = {"lidar": torch.special.entr(values / values.sum()).sum().exp().item()}
    if spread > 0:
        metrics["signal"] = ((between.trace() - spread / number) / spread).item()
    return metrics

"""KoLeo: features of different images lie apart, as a term beside any method's loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from eagleray.blocks.distributed import gather, rank
from eagleray.blocks.losses import normalised
from eagleray.contracts.batch import Batch, Progress, StepResult
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method

EPSILON = 1e-8


class KoLeo(nn.Module):
    """A method whose loss also spreads the features of its encoder.

    loss + weight * (mean over views of `koleo`), for the views of the run's image size that the step encodes with
    gradient: small crops and a teacher do not count. Images are compared within a view, never the views of one image.
    DINOv2 sums over its two crops, so that its weight of 0.1 is 0.2 here. Call it in the method's place.

    Raises:
        ConfigError: the method encodes no such views, or other images in the same pass.
    """

    def __init__(self, method: Method, weight: float):
        super().__init__()
        self.method, self.weight = method, weight

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        with observed(self.method.encoder, self.method.data.image_size) as passes:
            result = self.method(batch, progress)
        count = len(batch.indices)
        if not passes or any(len(features) % count for features in passes):
            raise ConfigError("koleo: this method does not encode whole views of the images; set koleo=0")
        views = [view for features in passes for view in features.split(count)]
        return replace(result, loss=result.loss + self.weight * torch.stack([koleo(view) for view in views]).mean())


@contextmanager
def observed(encoder: nn.Module, size: int) -> Iterator[list[Tensor]]:
    """Collect the features, [k * n, D], that an encoder makes with gradient of images of one size."""
    passes: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], features: Tensor) -> None:
        if features.requires_grad and inputs[0].shape[-1] == size:
            passes.append(features)

    handle = encoder.register_forward_hook(keep)
    try:
        yield passes
    finally:
        handle.remove()


def koleo(features: Tensor) -> Tensor:
    """Compute the Kozachenko-Leonenko estimator's loss.

    With z the L2-normalised features, and z_nn the nearest ones of another image among those of all workers:

        - mean over i of log(|z_i - z_nn(i) + e| + e),   e = 1e-8

    averaged over this worker's images. |z| is the L2 norm, and the first e is added to every coordinate, which keeps
    the gradient of equal features finite.

    Args:
        features: [n, D], not normalised.

    Returns:
        A scalar, float32 even inside a bf16 autocast (float64 for float64 features).

    Source: Sablayrolles et al. 2018, Spreading vectors for similarity search, https://arxiv.org/abs/1806.03198; as
    DINOv2 uses it, Oquab et al. 2023, https://arxiv.org/abs/2304.07193
    """
    with torch.autocast(features.device.type, enabled=False):
        z = normalised(features)
        everyone = gather(z)  # [N, D]
        with torch.no_grad():
            cosines = z @ everyone.T
            own = torch.arange(len(z), device=z.device)
            cosines[own, own + rank() * len(z)] = -2
            nearest = cosines.argmax(1)
        distances = torch.linalg.vector_norm(z - everyone[nearest] + EPSILON, dim=1)
        return -(distances + EPSILON).log().mean()

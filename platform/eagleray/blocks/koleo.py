"""KoLeo: features of different images lie apart, as a term beside any method's loss."""

from collections.abc import Iterator, Sequence
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
    gradient: small crops, a teacher, and labelled, changed or generated images do not count. Of a method that encodes
    no whole view in its order (but tiles, patches, mixtures or shuffled images), all views are encoded in a pass of
    their own. Images are compared within a view, never the views of one image, and over all workers; DINOv2 compares
    those of one worker. It sums over its two crops, so that its weight of 0.1 is 0.2 here. Call it in the method's
    place.

    Raises:
        ConfigError: no gradient trains the encoder.
    """

    def __init__(self, method: Method, weight: float):
        super().__init__()
        if not any(parameter.requires_grad for parameter in method.encoder.parameters()):
            raise ConfigError("koleo: no gradient trains this encoder; set koleo=0")
        self.method, self.weight = method, weight
        # In which passes and at which rows whole views begin, by the passes' lengths: comparing images waits for a GPU.
        self.whole: dict[tuple[int, ...], list[tuple[int, int]]] = {}

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        with observed(self.method.encoder) as passes:
            result = self.method(batch, progress)
        terms = torch.stack([koleo(features) for features in self._features(batch, passes)])
        return replace(result, loss=result.loss + self.weight * terms.mean())

    def _features(self, batch: Batch, passes: list[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
        """Return the features of whole views, each [n, D]."""
        count, size = len(batch.indices), self.method.data.image_size
        views = [view for view in batch.views if view.shape[-1] == size]
        lengths = tuple(len(images) for images, _ in passes)
        if lengths not in self.whole:
            self.whole[lengths] = [
                (place, row)
                for place, (images, _) in enumerate(passes)
                for view in views
                for row in rows_of(view, images)
            ]
        encoded = [passes[place][1][row : row + count] for place, row in self.whole[lengths]]
        return encoded or self.method.encoder(torch.cat(views)).split(count)


def rows_of(view: Tensor, images: Tensor) -> list[int]:
    """Return the rows of `images` at which all images of a view begin, in their order."""
    if images.shape[1:] != view.shape[1:]:
        return []
    begins = (images == view[0]).flatten(1).all(1).nonzero().flatten().tolist()
    return [row for row in begins if torch.equal(images[row : row + len(view)], view)]


@contextmanager
def observed(encoder: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the images and the features, [n, D], of each pass that an encoder makes with gradient."""
    passes: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], features: Tensor) -> None:
        if features.requires_grad:
            assert len(features) == len(inputs[0])
            passes.append((inputs[0], features))

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

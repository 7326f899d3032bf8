"""Sparse coding with a predictor (PSD): image patches as sums of few dictionary entries.

Kavukcuoglu, Ranzato, LeCun 2010, https://arxiv.org/abs/1010.3467
A patch x has the code z of the least energy 1/2 |x - W z|^2 + sparsity |z|_1 + prediction |z - f(x)|^2. The encoder is
the predictor f, a layer on whitened patches (`encoder=shrinkage_codes`): so images are encoded without a search for
codes. A step finds the codes of some patches, from f(x) on, and then moves the dictionary W and f with these codes
held. The columns of W have length 1.
Differs from the paper: f shrinks a linear map, in place of a scaled tanh, so that its codes have zeros too. At first it
is one step of the search from z = 0. Codes are found by proximal gradients (ISTA), and AdamW without decay moves W and
f, not plain gradients. Patches have 6 pixels and are prepared as those of Coates, Ng and Lee (2011); the features are
max(0, f(x)) and max(0, -f(x)), averaged over each of the image's quadrants. Images of more than 32 pixels are shrunk.
The weights of the energy are chosen for such patches.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import all_reduce_mean, broadcast
from eagleray.blocks.losses import squared_error
from eagleray.blocks.patch_codes import full_precision, layer_of, shrink, signs_apart
from eagleray.blocks.patch_features import whiten
from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import IntRange, LogUniform
from eagleray.contracts.recipe import Recipe, Recipes

RECIPE = Recipe(lr=1e-3, lr_scaling="none", weight_decay=0.0)


class SparseCoding(Method):
    """Generative: image patches are sums of few dictionary entries, which the encoder predicts."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        sparsity: Annotated[float, LogUniform(0.1, 3), Field(gt=0, description="weight of |z|_1")] = 1.0
        prediction: Annotated[
            float, LogUniform(0.1, 10), Field(gt=0, description="weight of the distance of codes and predictions")
        ] = 1.0
        iterations: Annotated[int, IntRange(5, 50), Field(ge=1, description="of the search for codes")] = 20
        patches: Annotated[int, IntRange(4, 64), Field(ge=1, description="patches of each image in a step")] = 16

    config: Config
    has_error = True
    only_encoder = "shrinkage_codes"
    metrics: ClassVar[dict[str, Metric]] = {
        "unexplained": Metric("squared distance of patches to W z, as a share of their squares", "lower", no_goal=TERM),
        "mispredicted": Metric("squared distance of f(x) to z, as a share of the squares of z", "lower", no_goal=TERM),
        "active": Metric("share of the numbers in a code z that are not 0"),
        "used": Metric("share of the dictionary's columns that some patch of a step uses", "higher"),
    }
    recipes = Recipes(paper=RECIPE, small=RECIPE)

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        layer = layer_of(encoder)
        layer.set_pixels(data.mean, data.std)
        self.decoder = nn.Linear(*layer.dictionary.shape, bias=False)  # its weight is W, [D, K]: a column for each code
        with torch.no_grad():
            dictionary = layer.dictionary.T.clone()  # its columns have length 1
            length = 1 / curvature(dictionary)
            self.decoder.weight.copy_(dictionary)
            layer.dictionary.mul_(length)
            self._threshold.fill_(length * config.sparsity)

    @property
    def _threshold(self) -> nn.Parameter:
        threshold = layer_of(self.encoder).threshold
        assert threshold is not None, "encoder=shrinkage_codes has one"
        return threshold

    @property
    def views(self) -> tuple[View, ...]:
        return (View(),)

    @torch.no_grad()
    def before_epoch(self, epoch: EpochView) -> None:
        if epoch.progress.step > 0:
            return
        layer = layer_of(self.encoder)
        mean, whitening = whiten(layer.sample(epoch.images, self.data.samples, self.data.seed))
        # Sums of many patches may differ in the last digit on different machines.
        layer.mean.copy_(broadcast(mean))
        layer.whitening.copy_(broadcast(whitening))

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        config, layer, images = self.config, layer_of(self.encoder), batch.views[0]
        with full_precision(images):
            patches = layer.draw(images, config.patches, self.rng(progress.step))  # [N, P, D]
            predictions = layer.codes(patches)  # [N, P, K]
            weights = config.sparsity, config.prediction
            x, f, dictionary = patches.flatten(0, 1), predictions.flatten(0, 1), self.decoder.weight
            z = best_codes(x, dictionary, f, *weights, config.iterations)
            loss = energy(x, dictionary, f, z, *weights).mean()
        is_active = z != 0
        metrics = {
            "unexplained": _share(x - z @ dictionary.detach().T, x),
            "mispredicted": _share(f.detach() - z, z),
            "active": is_active.to(loss.dtype).mean(),
            "used": (all_reduce_mean(is_active.to(loss.dtype).mean(0)) > 0).to(loss.dtype).mean(),
        }
        return StepResult(loss, [signs_apart(predictions.detach()).mean(1)], metrics)

    @torch.no_grad()
    def error(self, images: Tensor) -> Tensor:
        """Return the squared error of images that are rebuilt from the codes of their patches."""
        return squared_error(images, self.picture(images)["reconstructed"])

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Rebuild images from the predicted codes of their patches, and show the dictionary."""
        layer, dictionary = layer_of(self.encoder), self.decoder.weight.T  # [K, D]
        with full_precision(images):
            rebuilt = layer.rebuilt(images, lambda patches: layer.codes(patches) @ dictionary)
            # What an entry adds to a patch, at a contrast that shows it: up to two deviations of the images' pixels.
            entries = 2 * F.normalize(layer.unwhitened(dictionary) - layer.mean, torch.inf, dim=1)
        return {"reconstructed": rebuilt, "dictionary": layer.shaped(entries)}

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        # Else W grows and the codes shrink: the sparsity would cost nothing.
        self.decoder.weight.copy_(F.normalize(self.decoder.weight, dim=0))
        self._threshold.clamp_(min=0)


def energy(x: Tensor, dictionary: Tensor, f: Tensor, z: Tensor, sparsity: float, prediction: float) -> Tensor:
    """Return 1/2 |x - W z|^2 + sparsity |z|_1 + prediction |z - f|^2 of each patch (section 3).

    Args:
        x: patches, [N, D].
        dictionary: W, [D, K].
        f: predicted codes, [N, K].
        z: codes, [N, K].
        sparsity, prediction: weights.
    """
    reconstruction = (x - z @ dictionary.T).square().sum(1) / 2
    return reconstruction + sparsity * z.abs().sum(1) + prediction * (z - f).square().sum(1)


@torch.no_grad()
def best_codes(x: Tensor, dictionary: Tensor, f: Tensor, sparsity: float, prediction: float, iterations: int) -> Tensor:
    """Lower the energy of the codes z by proximal gradients, from z = f on (ISTA; Beck, Teboulle 2009).

    The gradient of all but |z|_1 changes by at most L times the change of z, with L the largest eigenvalue of W W^T
    plus 2 prediction. Arguments as `energy`; returns z, [N, K], without a gradient.
    """
    z, length = f, 1 / (curvature(dictionary) + 2 * prediction)
    for _ in range(iterations):
        slope = (z @ dictionary.T - x) @ dictionary + 2 * prediction * (z - f)
        z = shrink(z - length * slope, length * sparsity)
    return z


def curvature(dictionary: Tensor) -> Tensor:
    """Return the largest eigenvalue of W W^T."""
    return torch.linalg.matrix_norm(dictionary, 2).square()


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return the mean square of a part over that of the whole, both of all workers' patches."""
    squares = (all_reduce_mean(each.detach().square().mean()) for each in (part, whole))
    return next(squares) / next(squares).clamp(min=1e-6)

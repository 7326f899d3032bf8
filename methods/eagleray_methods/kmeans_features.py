"""K-means features: patches of images are coded by their distances to centroids.

Coates, Ng, Lee 2011, https://proceedings.mlr.press/v15/coates11a.html
The encoder is the dictionary of centroids itself (`encoder=triangle_codes`). Before the first step k-means is fitted to
200,000 patches of the training images, as for the floor `kmeans`. The steps go on with it: the gradient of a patch's
squared distance to its nearest centroid moves that centroid towards the patch, which is k-means in small batches
(Bottou, Bengio 1995). So the encoder is evaluated, exported and fine-tuned like any other.
Differs from the paper: k-means runs on batches, and its centroids still move a little in the steps. There are 400
centroids, the paper's best features have 4,000 (`encoder.width`). Features are divided by a quarter of the number of
patches. Images of more than 32 pixels are shrunk.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment import View
from eagleray.blocks.distributed import all_reduce_mean, broadcast
from eagleray.blocks.kmeans import nearest
from eagleray.blocks.losses import squared_error
from eagleray.blocks.patch_codes import full_precision, layer_of
from eagleray.blocks.patch_features import fit_patch_features
from eagleray.contracts.batch import Batch, DataInfo, EpochView, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import IntRange
from eagleray.contracts.recipe import Recipe, Recipes

# A centroid moves towards the mean of its patches by lr times their share of the batch: here one part in a hundred.
RECIPE = Recipe(name="sgd", lr=4.0, lr_scaling="none", momentum=0.0, weight_decay=0.0)


class KMeansFeatures(Method):
    """Generative: k-means groups image patches, whose distances to the centroids are the features."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        patches: Annotated[int, IntRange(4, 64), Field(ge=1, description="patches of each image in a step")] = 16

    config: Config
    has_error = True
    only_encoder = "triangle_codes"
    metrics: ClassVar[dict[str, Metric]] = {
        "unexplained": Metric("squared distance of patches to their centroids, as a share of their squares", "lower"),
        "used": Metric("share of the centroids that are the nearest to some patch of a step", "higher"),
    }
    recipes = Recipes(paper=RECIPE, small=RECIPE)

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        layer = layer_of(encoder)
        layer.set_pixels(data.mean, data.std)
        available, width = data.samples * layer.patches_in(data.image_size), len(layer.dictionary)
        if width > available:
            raise ConfigError(
                f"encoder.width={width} is more than the {available} patches of all training images: "
                f"take {max(2, available // 50)}, which gives each centroid some fifty"
            )

    @property
    def views(self) -> tuple[View, ...]:
        return (View(),)

    @torch.no_grad()
    def before_epoch(self, epoch: EpochView) -> None:
        if epoch.progress.step > 0:
            return
        layer, seed = layer_of(self.encoder), self.data.seed
        patches = layer.sample(epoch.images, self.data.samples, seed)
        found = fit_patch_features(patches, layer.side, seed=seed, centroids=len(layer.dictionary))
        # K-means amplifies differences in the last digit, which workers on different machines may have.
        layer.mean.copy_(broadcast(found.mean))
        layer.whitening.copy_(broadcast(found.whitening))
        layer.dictionary.copy_(broadcast(found.centroids))

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        layer, images = layer_of(self.encoder), batch.views[0]
        with full_precision(images):
            patches = layer.draw(images, self.config.patches, self.rng(progress.step))  # [N, P, D]
            points = patches.flatten(0, 1)
            assigned = nearest(points, layer.dictionary.detach())
            loss = quantisation_error(points, layer.dictionary, assigned)
            embeddings = layer.codes(patches).detach().mean(1)
        seen = all_reduce_mean(assigned.bincount(minlength=len(layer.dictionary)).to(loss.dtype))
        error, squares = (all_reduce_mean(each.detach()) for each in (loss, points.square().sum(1).mean() / 2))
        metrics = {"unexplained": error / squares.clamp(min=1e-6), "used": (seen > 0).to(loss.dtype).mean()}
        return StepResult(loss, [embeddings], metrics)

    @torch.no_grad()
    def error(self, images: Tensor) -> Tensor:
        """Return the squared error of images that are rebuilt from the centroids nearest to their patches."""
        return squared_error(images, self.picture(images)["reconstructed"])

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Rebuild images from the centroids nearest to their patches, and show all centroids."""
        layer, centroids = layer_of(self.encoder), layer_of(self.encoder).dictionary
        with full_precision(images):
            rebuilt = layer.rebuilt(images, lambda x: centroids[nearest(x.flatten(0, 1), centroids)].view_as(x))
            # A patch without its brightness and contrast has the mean 0 and the deviation 1 that images have.
            return {"reconstructed": rebuilt, "centroids": layer.shaped(layer.unwhitened(centroids))}


def quantisation_error(points: Tensor, centroids: Tensor, assigned: Tensor) -> Tensor:
    """Return half the mean squared distance of points to their centroids.

    [N, D], [K, D], int64 [N] -> scalar. With n_k of N points at centroid c_k, its gradient is n_k / N times the
    difference of c_k and the mean of these points.
    """
    return (points - centroids[assigned]).square().sum(1).mean() / 2

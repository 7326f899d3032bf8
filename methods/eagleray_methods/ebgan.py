"""EBGAN: an autoencoder tells real images from generated ones by how well it reconstructs them.

Energy-based generative adversarial network. Zhao, Mathieu, LeCun 2016, https://arxiv.org/abs/1609.03126
Energies are distances of pixels from -1 to 1. The features evaluated are those of the discriminator's encoder, whose
running statistics are those of real images. The evaluator `unseen` compares energies of training and held-out images.
Differs from the paper: the encoder given takes the place of the discriminator's convolutions, both decoders are
DCGAN's. The margin grows with the side of the images: the paper's 20 to 80 for 64 to 256 pixels in colour (40 for 128)
are 0.18 of the root of their numbers, except 80 for bedrooms of 64 pixels; its 10 for MNIST is 0.36. It is constant.
The repelling term compares the images of the whole batch. Rates are DCGAN's, latent vectors Gaussian. Under the small
recipe the rate is larger and falls by a cosine.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.decoders import Decoder
from eagleray.blocks.distributed import gather, own_rows, rank, world_size
from eagleray.blocks.frozen import as_constant, frozen_statistics
from eagleray.blocks.losses import normalised
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import Choice, IntRange, LogUniform
from eagleray.contracts.recipe import SMALL, Recipe, Recipes

Network = Callable[[Tensor], Tensor]
PLAYERS = "it is about the two players, not about features"


class EBGAN(Method):
    """Generative: the energy of an autoencoder is low for real and high for generated images."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        margin: Annotated[
            float,
            LogUniform(0.05, 1.0),
            Field(gt=0, description="energy to which generated images are pushed, as a root mean square; -1 to 1"),
        ] = 0.18
        repelling: Annotated[
            float, LogUniform(0.01, 1.0), Field(ge=0, description="weight of the repelling (pulling-away) term")
        ] = 0.1
        latent: Annotated[int, IntRange(16, 256), Field(ge=1, description="numbers that an image is made from")] = 100
        width: Annotated[
            int, Choice(16, 32, 64, 128), Field(ge=1, description="channels of both decoders' last map but one")
        ] = 128

    config: Config
    has_error = True
    metrics: ClassVar[dict[str, Metric]] = {
        "energy": Metric("energy of real images: their distance from their reconstruction", "lower", no_goal=TERM),
        "generated_energy": Metric("energy of generated images; the margin at most, in balance", no_goal=PLAYERS),
        "similarity": Metric("mean squared cosine of features of generated images; 1: all alike", no_goal=PLAYERS),
    }
    recipes = Recipes(
        paper=Recipe(lr=2e-4, momentum=0.5, lr_scaling="none", weight_decay=0.0, final_lr=1.0),
        small=SMALL.model_copy(update={"name": "adamw", "lr": 1e-3, "momentum": 0.5}),
        small_settings={"width": 32},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.margin = config.margin * math.sqrt(data.channels) * data.image_size
        self.decoder = Decoder(encoder.dim, data, config.width)
        self.generator = Decoder(config.latent, data, config.width)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        drawn = self._drawn(len(images), progress.step)
        generated = self.generator(drawn.to(images.device, images.dtype, non_blocking=True))
        # Real and generated images are normalised apart, and evaluation uses the statistics of real ones.
        features, energy = self._judge(self.encoder, self.decoder, images)
        with frozen_statistics(self.encoder), frozen_statistics(self.decoder):
            _, pushed = self._judge(self.encoder, self.decoder, generated.detach())
            made, pulled = self._judge(
                partial(as_constant, self.encoder), partial(as_constant, self.decoder), generated
            )
        similarity = mean_squared_cosine(made)
        loss = energy.mean() + F.relu(self.margin - pushed).mean()
        loss = loss + pulled.mean() + self.config.repelling * similarity
        metrics = {"energy": energy.detach().mean(), "generated_energy": pushed.detach().mean()}
        return StepResult(loss, [features.detach()], {**metrics, "similarity": similarity.detach()})

    @torch.no_grad()
    def error(self, images: Tensor) -> Tensor:
        """Return the energy of images."""
        return self._judge(self.encoder, self.decoder, images)[1]

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Reconstruct images by the discriminator, and generate others."""
        drawn = self._drawn(2 * len(images), 0).to(images)
        return {"reconstructed": self.decoder(self.encoder(images)), "generated": self.generator(drawn)}

    def _drawn(self, count: int, step: int) -> Tensor:
        """Draw this worker's `count` latent vectors, [count, latent]."""
        return own_rows(torch.randn(world_size() * count, self.config.latent, generator=self.rng(step)))

    def _judge(self, encode: Network, decode: Network, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and energies of images, [N, dim] and [N]."""
        features = encode(images)
        return features, distances(self.decoder.signed(images), self.decoder.signed(decode(features)))


def distances(images: Tensor, others: Tensor) -> Tensor:
    """Compute the Euclidean distance of each image from another, [N]."""
    return ((images - others).square().flatten(1).sum(1) + 1e-12).sqrt()


def mean_squared_cosine(features: Tensor) -> Tensor:
    """Compute the repelling regulariser, or pulling-away term.

        1 / (N (N - 1)) sum over i and j != i of cos²(s_i, s_j)

    Args:
        features: s, [n, D] of this worker; j runs over the N images of all workers.

    Returns:
        A scalar; the mean over this worker's i.
    """
    with torch.autocast(features.device.type, enabled=False):
        vectors = normalised(features)
        everyone = gather(vectors)
        own = torch.arange(len(vectors), device=vectors.device) + rank() * len(vectors)
        squares = (vectors @ everyone.T).square().scatter(1, own[:, None], 0.0)
        return squares.sum(1).mean() / max(1, len(everyone) - 1)

"""BiGAN: an encoder learns to invert a generator, as a discriminator sees pairs of image and latent vector.

Bidirectional generative adversarial network. Donahue, Krähenbühl, Darrell 2016, https://arxiv.org/abs/1605.09782
The features evaluated are the encoder's, before the linear layer that makes latent vectors of them. Latent vectors,
the encoder's in the range of the drawn ones, optimizer, rate and weight decay are those of the authors' code for
ImageNet. Under the small recipe the discriminator learns more slowly than the others: at their rate it recognises
nearly all pairs after some hundred steps, and teaches them little.
Differs from the paper: generator and the discriminator's convolutions are DCGAN's with kernels of 4; the latent vector
meets their features in a perceptron with one hidden layer. The authors keep the rate for half of the training and let
it fall to a hundredth exponentially, here it falls by a cosine from the start; weight decay is decoupled from Adam.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.decoders import SLOPE, Decoder, discriminator, discriminator_loss, draw_weights, recognised
from eagleray.blocks.distributed import own_rows, world_size
from eagleray.blocks.frozen import as_constant
from eagleray.blocks.losses import squared_error
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, IntRange, LogUniform
from eagleray.contracts.recipe import SMALL, Recipe, Recipes


class JointDiscriminator(nn.Module):
    """Tell encoded images from generated ones.

    Images [N, C, S, S] and latent vectors [N, latent] -> logits [N, 1].

    Args:
        data: channels and side of the images.
        latent: width of the latent vectors.
        width: channels of the first map.
        hidden: width of the features of an image, and of the layer where both meet.
    """

    def __init__(self, data: DataInfo, latent: int, width: int, hidden: int):
        super().__init__()
        self.convolutions = discriminator(data.channels, data.image_size, width, hidden)
        self.joint = nn.Sequential(
            nn.LeakyReLU(SLOPE), nn.Linear(hidden + latent, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, 1)
        )
        draw_weights(self.joint)

    def forward(self, images: Tensor, latent: Tensor) -> Tensor:
        return self.joint(torch.cat([self.convolutions(images), latent], 1))


class BiGAN(Method):
    """Generative: an encoder inverts a generator, both against a discriminator of pairs of image and latent vector."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        latent: Annotated[int, IntRange(16, 256), Field(ge=1, description="numbers that an image is made from")] = 200
        width: Annotated[
            int, Choice(16, 32, 64, 128), Field(ge=1, description="channels of both networks at half the side")
        ] = 64
        hidden: Annotated[
            int, IntRange(64, 1024), Field(ge=1, description="width where image and latent vector are joined")
        ] = 1024
        discriminator_rate: Annotated[
            float, LogUniform(0.03, 1.0), Field(gt=0, description="learning rate of the discriminator, by the others'")
        ] = 1.0

    config: Config
    has_error = True
    metrics: ClassVar[dict[str, Metric]] = {
        "recognised": Metric(
            "share of pairs of which the discriminator recognises the origin; 0.5: by chance",
            no_goal="it is about the players, not about features",
        )
    }
    recipes = Recipes(
        paper=Recipe(lr=2e-4, momentum=0.5, lr_scaling="none", weight_decay=2.5e-5, final_lr=0.01),
        small=SMALL.model_copy(update={"lr": 5e-4, "momentum": 0.5}),
        small_settings={"latent": 100, "width": 32, "hidden": 256, "discriminator_rate": 0.2},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.latent = nn.Linear(encoder.dim, config.latent)
        self.generator = Decoder(config.latent, data, config.width)
        self.discriminator = JointDiscriminator(data, config.latent, config.width, config.hidden)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return (ParameterGroup(self.discriminator, lr=self.config.discriminator_rate),)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(shift=0.0625, flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        drawn = self._drawn(len(images), progress.step).to(images.device, images.dtype, non_blocking=True)
        features = self.encoder(images)
        encoded, generated = self._invert(features), self.generator(drawn)
        # Each kind of pair in a pass of its own, so that batch norms see them apart.
        on_encoded = self.discriminator(images, encoded.detach())
        on_generated = self.discriminator(generated.detach(), drawn)
        loss = discriminator_loss(on_encoded, on_generated)
        # Encoder and generator: both labels exchanged, whose gradient is strong where the discriminator is right.
        loss = loss + discriminator_loss(
            as_constant(self.discriminator, generated, drawn), as_constant(self.discriminator, images, encoded)
        )
        return StepResult(loss, [features.detach()], {"recognised": recognised(on_encoded, on_generated)})

    @torch.no_grad()
    def error(self, images: Tensor) -> Tensor:
        """Return the squared error of what an image's own latent vector generates, which training never compares."""
        return squared_error(images, self._reconstructed(images))

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Generate images from their latent vectors, and others from drawn ones."""
        drawn = self._drawn(2 * len(images), 0).to(images)
        return {"reconstructed": self._reconstructed(images), "generated": self.generator(drawn)}

    def _reconstructed(self, images: Tensor) -> Tensor:
        return self.generator(self._invert(self.encoder(images)))

    def _invert(self, features: Tensor) -> Tensor:
        """Make latent vectors of features, in the range of the drawn ones: else a discriminator tells both by it."""
        return (self.latent(features) / 2).tanh()

    def _drawn(self, count: int, step: int) -> Tensor:
        """Draw this worker's `count` latent vectors, [count, latent], evenly from -1 to 1."""
        return own_rows(torch.rand(world_size() * count, self.config.latent, generator=self.rng(step)) * 2 - 1)

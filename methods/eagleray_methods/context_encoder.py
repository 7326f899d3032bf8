"""Context encoder: paint what was hidden of an image, with or without a discriminator.

Pathak, Krähenbühl, Donahue, Darrell, Efros 2016, https://arxiv.org/abs/1604.07379
With `adversarial` 0 it is the paper's context autoencoder, which it trained for features. The weights of the two terms
and of the rim around the predicted square, rates and initial weights are those of the authors' code.
Differs from the paper: each image has a random region of its own, of exactly a quarter of its pixels; the authors' code
draws one for a batch, of about a quarter. With random regions the error is that of hidden pixels (equation 1; their
code: of all pixels), and the discriminator sees the image with its region painted. The decoder begins at the features,
without a further bottleneck, and its first convolution and the discriminator's last cover 3 or 4 pixels at any size.
The encoder's rate is multiplied even where there is no discriminator. Crops cover at least half of the image, theirs
a fixed 128 pixels of 350. Under the small recipe the rate falls by a cosine.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.decoders import Decoder, discriminator, discriminator_loss, recognised
from eagleray.blocks.distributed import own_rows, world_size
from eagleray.blocks.frozen import as_constant
from eagleray.blocks.losses import precise
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import Choice, LogUniform, Uniform
from eagleray.contracts.recipe import SMALL, Recipe, Recipes

HIDDEN = 0.25  # share of the pixels of a random region
RIM = 10.0  # weight of the error on the rim of the predicted square, which the encoder sees
CELLS = 8  # of noise along a side, whose valleys are the random regions


class ContextEncoder(Method):
    """Generative: a hidden region is painted from what surrounds it, so that a discriminator takes it for real."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        hole: Annotated[
            Literal["random", "centre"],
            Choice("random", "centre"),
            Field(description="random: a quarter of the image in irregular regions; centre: a square of half the side"),
        ] = "random"
        adversarial: Annotated[
            float, Uniform(0.0, 0.01), Field(ge=0, lt=1, description="weight of the discriminator; 0: there is none")
        ] = 0.001
        generator_rate: Annotated[
            float, LogUniform(1.0, 30.0), Field(gt=0, description="factor on the rate of encoder and decoder")
        ] = 10.0
        width: Annotated[
            int, Choice(16, 32, 64), Field(ge=1, description="channels of decoder and discriminator at half the side")
        ] = 64

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "reconstruction": Metric("squared error of what is painted, pixels from -1 to 1", "lower", no_goal=TERM),
        "recognised": Metric(
            "share of real and painted images that the discriminator recognises; 0.5: by chance, or there is none",
            no_goal="it is about the two players, not about features",
        ),
    }
    recipes = Recipes(
        paper=Recipe(lr=2e-4, momentum=0.5, lr_scaling="none", weight_decay=0.0, final_lr=1.0),
        small=SMALL.model_copy(update={"lr": 2e-4, "momentum": 0.5}),
        small_settings={"width": 32},
    )

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        side = data.image_size
        if side < 8:
            raise ConfigError(f"image_size={side} leaves too little around a hole: take 8 or more")
        self.rim = max(1, round(side / 32))
        self.window = slice(side // 4, side // 4 + side // 2) if config.hole == "centre" else slice(None)  # predicted
        predicted = side // 2 if config.hole == "centre" else side
        self.decoder = Decoder(encoder.dim, data, config.width, predicted)
        self.discriminator = discriminator(data.channels, predicted, config.width) if config.adversarial else None

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.5, 1.0), flip=0.5),)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        generator = nn.ModuleList([self.encoder, self.decoder])
        return (ParameterGroup(generator, lr=self.config.generator_rate),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        hidden = self._hidden(images, progress.step)  # [N, 1, S, S]
        # The mean colour fills the hole, as channels are normalised.
        features = self.encoder(images.masked_fill(hidden, 0.0))
        real = self._predicted(self.decoder.signed(images))  # [N, C, P, P]: all of the image, or the square
        hidden = self._predicted(hidden)
        painted = self.decoder.signed(self.decoder(features))
        errors = (painted - real).square()
        loss = (1 - self.config.adversarial) * (self._weights(hidden) * errors).mean()
        share = images.new_tensor(0.5)
        if self.discriminator is not None:
            # Around the square's hole the decoder's own rim is judged, around a random region the true image.
            generated = painted if self.config.hole == "centre" else torch.where(hidden, painted, real)
            # Two passes, so that batch norms see real and painted images apart.
            on_real, on_generated = self.discriminator(real), self.discriminator(generated.detach())
            taken_for_real = precise(as_constant(self.discriminator, generated))
            loss = loss + self.config.adversarial * F.softplus(-taken_for_real).mean()
            loss = loss + discriminator_loss(on_real, on_generated)
            share = recognised(on_real, on_generated)
        error = errors.detach().mean(1, keepdim=True)[hidden].mean()
        return StepResult(loss, [features.detach()], {"reconstruction": error, "recognised": share})

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Hide a region of each image and paint it."""
        hidden = self._hidden(images, 0)
        seen, painted = images.masked_fill(hidden, 0.0), images.clone()
        self._predicted(painted)[:] = self.decoder(self.encoder(seen))
        return {"seen": seen, "completed": torch.where(hidden, painted, images)}

    def _predicted(self, images: Tensor) -> Tensor:
        """Return the part of images that the decoder predicts."""
        return images[:, :, self.window, self.window]

    def _hidden(self, images: Tensor, step: int) -> Tensor:
        """Return what is hidden of this worker's images, bool [N, 1, S, S].

        Random regions are drawn for the images of all workers.
        """
        count, _, side, _ = images.shape
        if self.config.hole == "centre":
            hidden = torch.zeros(count, 1, side, side, dtype=torch.bool, device=images.device)
            self._predicted(hidden)[:, :, self.rim : -self.rim, self.rim : -self.rim] = True
            return hidden
        cells = min(CELLS, side // 4)
        noise = torch.rand(world_size() * count, 1, cells, cells, generator=self.rng(step))
        return valleys(own_rows(noise), side, HIDDEN).to(images.device, non_blocking=True)

    def _weights(self, hidden: Tensor) -> Tensor:
        """Return the weights of the errors, [N, 1, P, P]; of `hidden` in the predicted part."""
        if self.config.hole == "centre":
            return torch.where(hidden, 1.0, RIM)
        return hidden / precise(hidden).mean((1, 2, 3), keepdim=True)  # the mean over hidden pixels


def valleys(noise: Tensor, side: int, share: float) -> Tensor:
    """Return the lowest pixels of noise that is smoothed to images.

    Args:
        noise: [N, 1, cells, cells].
        side: of the images, S.
        share: of the pixels that are lowest.

    Returns:
        bool [N, 1, S, S], true for the same number of pixels in each image.
    """
    smooth = F.interpolate(noise, size=(side, side), mode="bicubic").flatten(1)
    lowest = smooth.argsort(1)[:, : round(share * side**2)]
    return torch.zeros_like(smooth, dtype=torch.bool).scatter(1, lowest, True).view(-1, 1, side, side)

"""Denoising autoencoder: reconstruct images from corrupted ones.

Vincent, Larochelle, Bengio, Manzagol 2008, https://www.cs.toronto.edu/~larocheh/publications/icml-2008-denoising-autoencoders.pdf
The three corruptions are those of the authors' longer paper (Vincent et al. 2010); amounts and black and
white are in units of pixels from 0 to 1. Nothing but the features reaches the decoder, so it cannot copy.
Differs from the paper: one deep convolutional network is trained at once, not a stack layer by layer; the decoder is
DCGAN's, its weights not tied to the encoder's, and its squared error is in units of the normalised channels, over
all pixels. Masking and salt and pepper change all channels of a pixel, as the others would give its value away. Both
recipes are ours: AdamW and Muon, not plain gradient descent.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from eagleray.augment import View
from eagleray.blocks.decoders import Decoder
from eagleray.blocks.distributed import own_rows, world_size
from eagleray.blocks.losses import squared_error
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, LogUniform, Uniform
from eagleray.contracts.recipe import Recipe, Recipes

OTHERS = "images that are corrupted less are nearer to their originals"


class DenoisingAutoencoder(Method):
    """Generative: an autoencoder reconstructs the clean image from a corrupted one."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        corruption: Annotated[
            Literal["masking", "gaussian", "salt_pepper"],
            Choice("masking", "gaussian", "salt_pepper"),
            Field(description="masking: pixels become black; salt_pepper: black or white; gaussian: noise is added"),
        ] = "masking"
        share: Annotated[
            float, Uniform(0.1, 0.6), Field(ge=0, lt=1, description="share of the pixels; not for gaussian")
        ] = 0.25
        noise: Annotated[
            float, LogUniform(0.05, 0.5), Field(ge=0, description="deviation of gaussian, pixels from 0 to 1")
        ] = 0.3
        decoder_width: Annotated[
            int, Choice(16, 32, 64, 128), Field(ge=1, description="channels of the decoder's last map but one")
        ] = 128

    config: Config
    has_error = True
    metrics: ClassVar[dict[str, Metric]] = {
        "psnr": Metric("peak signal-to-noise ratio of reconstructions, in decibels", "higher", no_goal=OTHERS),
        "corrupted_psnr": Metric("the same of the corrupted images", no_goal=OTHERS),
    }
    recipes = Recipes(paper=Recipe(lr=1e-3, lr_scaling="none", weight_decay=0.0), small_settings={"decoder_width": 32})

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.decoder = Decoder(encoder.dim, data, config.decoder_width)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        corrupted = self._corrupt(images, progress.step)
        features = self.encoder(corrupted)
        reconstructed = self.decoder(features)
        metrics = {
            name: psnr(self.decoder.signed(images), self.decoder.signed(each.detach()))
            for name, each in (("psnr", reconstructed), ("corrupted_psnr", corrupted))
        }
        return StepResult((reconstructed - images).square().mean(), [features.detach()], metrics)

    @torch.no_grad()
    def error(self, images: Tensor) -> Tensor:
        """Return the squared error of the reconstruction of images that are not corrupted."""
        return squared_error(images, self.decoder(self.encoder(images)))

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Corrupt images and reconstruct all their pixels."""
        corrupted = self._corrupt(images, 0)
        return {"seen": corrupted, "reconstructed": self.decoder(self.encoder(corrupted))}

    def _corrupt(self, images: Tensor, step: int) -> Tensor:
        mean, std = self.decoder.mean, self.decoder.std
        if self.config.corruption == "gaussian":
            return images + self.config.noise / std * self._draw(torch.randn, images, step)
        numbers = self._draw(torch.rand, images[:, :1], step)
        is_replaced = numbers < self.config.share
        is_white = (numbers < self.config.share / 2) & (self.config.corruption == "salt_pepper")
        return torch.where(is_replaced, (is_white.to(images.dtype) - mean) / std, images)

    def _draw(self, distribution: Callable[..., Tensor], images: Tensor, step: int) -> Tensor:
        """Draw this worker's random numbers, of the images' shape.

        They are drawn for the images of all workers.
        """
        count, *shape = images.shape
        whole = distribution(world_size() * count, *shape, generator=self.rng(step))
        return own_rows(whole).to(images.device, non_blocking=True)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Compute the mean peak signal-to-noise ratio of images.

    10 log10(4 / mean squared difference), of pixels from -1 to 1, whose peaks are 2 apart; at most 100 decibels.
    """
    errors = (images - others).square().flatten(1).mean(1)
    return 10 * (4 / errors.clamp(min=4e-10)).log10().mean()
